"""A store at its limit: publishes that would be kept fail, and nothing else does."""

from __future__ import annotations

import json

import pytest

from tests.harness.api import Api, ApiError
from tests.harness.fixtures import server_with
from tests.harness.metrics import scrape
from tests.harness.server import Server

CHAT = {
    "history_size": 1000,
    "history_ttl": 3600,
    "force_recovery": True,
    "presence": True,
    "allow_subscribe_for_client": True,
    "allow_publish_for_client": True,
    "allow_history_for_client": True,
    "allow_presence_for_client": True,
}
NAMESPACES = [
    {"name": "small", "max_size": 20_000, **CHAT},
    {"name": "live", "allow_publish_for_client": True},
]

server = server_with(
    {
        "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(CHAT),
        "STEADWIRE_CHANNELS_NAMESPACES": json.dumps(NAMESPACES),
        "STEADWIRE_STORE_MAX_SIZE": "2000000",
        "STEADWIRE_CLIENT_INSECURE": "true",
    }
)


async def refused(api: Api, channel: str) -> bool:
    """Publish 9,000 bytes; return whether that was refused as it should be."""
    try:
        await api.publish(channel, "x" * 9_000)
    except ApiError as error:
        assert error.code == 111
        return True
    return False


async def used(api: Api) -> float:
    return (await scrape(api))["store_bytes{used}"]


async def test_a_full_store(server: Server, api: Api) -> None:
    client = await server.raw()
    while not await refused(api, "small:1"):
        pass
    await api.publish("a", "the namespace alone is full")
    before = await used(api)
    while not await refused(api, "a"):
        pass
    answer = await client.request(publish={"channel": "a", "data": "1"})
    assert answer["error"] == {
        "code": 111,
        "message": "too many requests",
        "temporary": True,
    }
    result = await api.call("broadcast", {"channels": ["b", "live:1"], "data": 1})
    codes = [each.get("error", {}).get("code") for each in result["responses"]]
    assert codes == [111, None]
    # Everything else goes on.
    assert await client.publish("live:1", "1") == {}
    await client.subscribe("b")
    await api.call("history", {"channel": "a", "limit": 5})
    await api.call("presence", {"channel": "a"})
    await api.call("erase", {"user": "nobody", "publications": True})
    assert (await api.request("GET", "/health/ready")).json["status"] == "ready"
    assert before < 1_000_000 < 1_900_000 < await used(api)
    await server.logged("the store is full", times=2)
    # And publishes go on when there is room.
    await api.call("history_remove", {"channel": "a"})
    assert not await refused(api, "b")
    await server.logged("the store has room again")
    with pytest.raises(ApiError):
        await api.publish("small:2", "x" * 20_000)

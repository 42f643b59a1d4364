"""What a gateway cannot keep of the contract, and what happens there instead.

docs/serverless.md has the list. The suite of the local mode runs there too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.api import Api, ApiError
from tests.harness.backends import GATEWAYS, Backend
from tests.harness.fixtures import server_with
from tests.harness.gateway import GatewayServer
from tests.harness.raw import HandshakeRefused
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.server.running import until

NAMESPACES = [{"name": "who", "presence": True}]

server = server_with({"STEADWIRE_CHANNELS_NAMESPACES": json.dumps(NAMESPACES)})


@pytest.fixture(
    scope="module",
    params=["http_proxy", pytest.param("lambda", marks=pytest.mark.slow)],
)
def backend(request: pytest.FixtureRequest) -> Backend:
    return GATEWAYS[request.param]


async def test_a_frame_over_32_kib_closes_with_1009(
    server: Server, channel: str
) -> None:
    async with await server.raw() as client:
        await client.publish(channel, "x" * 32_000)
        text = json.dumps(
            {"id": 9, "publish": {"channel": channel, "data": "x" * 32 * 1024}}
        )
        await client.send_text(text)
        assert (await client.closed()).code == 1009


async def test_what_the_gateway_cannot_write_is_refused_at_publish(
    server: Server, api: Api, channel: str
) -> None:
    """And what it can is written: in frames of 32 KiB, and whole."""
    async with await server.raw() as client:
        await client.subscribe(channel)
        await api.publish(channel, "x" * 118 * 1024)
        with pytest.raises(ApiError) as refused:
            await api.publish(channel, "x" * 121 * 1024)
        assert refused.value.code == 107
        await api.publish(channel, "after")
        first, second = await client.publications(channel, 2)
    assert (len(first["data"]), first["offset"]) == (118 * 1024, 1)
    assert (second["data"], second["offset"]) == ("after", 2)


async def test_protobuf_is_refused_before_the_socket_is_open(server: Server) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        offer = {"Sec-WebSocket-Protocol": "centrifuge-protobuf"}
        await server.raw(connected=False, headers=offer)
    assert refused.value.status == 400


async def test_there_are_no_pongs(server: Server) -> None:
    async with await server.raw(connected=False) as client:
        reply = await client.request(connect={})
        assert reply["connect"]["ping"] == 300
        assert "pong" not in reply["connect"]
        # One that comes all the same is not an error.
        await client.send_text("{}")
        assert await client.publish("any", 1) == {}


async def test_a_close_is_a_push_and_then_1000(server: Server) -> None:
    async with await server.raw() as client:
        client.at_gateway = False  # show what comes
        await client.send_text("no command")
        assert await client.message() == {
            "push": {"disconnect": {"code": 3501, "reason": "bad request"}}
        }
        assert (await client.closed()).code == 1000


async def test_pipelined_publishes_are_dense_in_any_order(
    server: Server, channel: str
) -> None:
    async with await server.raw() as publisher, await server.raw() as subscriber:
        await subscriber.subscribe(channel)
        for number in range(20):  # a frame each
            await publisher.send(
                {"id": 100 + number, "publish": {"channel": channel, "data": number}}
            )
        found = await subscriber.publications(channel, 20)
    assert [each["offset"] for each in found] == list(range(1, 21))
    assert sorted(each["data"] for each in found) == list(range(20))


async def test_a_lost_connection_leaves_presence_at_once(
    server: Server, api: Api, channel: str
) -> None:
    channel = f"who:{channel}"

    async def present() -> int:
        found = await api.call("presence_stats", {"channel": channel})
        return int(found["num_clients"])

    client = await server.raw()
    await client.subscribe(channel)
    assert await present() == 1

    async def nobody() -> bool:
        return await present() == 0

    client.reset()
    await until(nobody, 8.0, "it left, sooner than after a grace of 10 s")


@pytest.mark.parametrize("sdk", ["js-5.5.3", "python-0.4.4"])
async def test_an_old_sdk_that_subscribes_again_loses_nothing(
    server: Server, api: Api, start_host: Callable[..., Any], channel: str, sdk: str
) -> None:
    """It may be shown a publication of that moment twice."""
    client = await SdkClient.create(await start_host(sdk), server.url)
    await client.connect()
    await client.subscribe(channel)
    for number in range(1, 6):
        await client.do("unsubscribe", channel=channel)
        await client.do("subscribe", channel=channel)
        await client.seen("subscribed", number + 1)
        await api.publish(channel, number)
    await client.until(lambda: 5 in client.offsets(channel), "the last")
    seen = dict.fromkeys(client.offsets(channel))
    assert list(seen) == [1, 2, 3, 4, 5]


async def test_a_socket_that_does_not_connect_is_closed_by_the_sweep(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server(
        {
            "STEADWIRE_CLIENT_STALE_TIMEOUT": "0.5",
            "STEADWIRE_GATEWAY_SWEEP_INTERVAL": "0.5",
            "STEADWIRE_GATEWAY_PING_INTERVAL": "2",
        }
    ).start()
    assert isinstance(server, GatewayServer)
    async with await server.raw(connected=False) as stale, await server.raw() as here:
        assert (await stale.closed()).code == 3502
        frame = await here.frame()
        assert frame.payload == b"{}"  # a ping

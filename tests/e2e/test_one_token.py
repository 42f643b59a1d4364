"""One token, several connections: from other addresses, and after a reconnect."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.harness.fixtures import server_with
from tests.harness.raw import RawClient
from tests.harness.server import Server
from tests.harness.tokens import connection, settings

server = server_with(settings())

HERE, THERE = "127.0.0.7", "127.0.0.9"


async def enter(
    server: Server, token: str, address: str = HERE
) -> tuple[RawClient, dict[str, Any]]:
    client = await server.raw(connected=False, source=address)
    return client, await client.connect(token=token)


@pytest.mark.requirement("B68")
async def test_a_token_is_good_from_two_addresses(server: Server) -> None:
    # A phone that goes from one network to another has both connections for a while.
    token = connection("ann", channels=["both"])
    first, _ = await enter(server, token)
    second, _ = await enter(server, token, THERE)
    async with server.api() as api:
        await api.publish("both", 1)
        for client in (first, second):
            assert (await client.publications("both", 1))[0]["data"] == 1
        found = (await api.call("connections", {"user": "ann"}))["connections"]
    assert len(found) == 2
    await server.logged(f'"user": "ann", "address": "{THERE}"')
    lines = [line for line in server.log() if line["event"] == "authentication"]
    admitted = [line for line in lines if line["user"] == "ann"]
    assert Counter(line["address"] for line in admitted) == {HERE: 1, THERE: 1}


@pytest.mark.requirement("R40")
async def test_a_reconnect_has_the_channels_of_its_token_and_no_others(
    server: Server,
) -> None:
    token = connection("bob", channels=["room"])
    first, reply = await enter(server, token)
    assert list(reply["subs"]) == ["room"]
    async with server.api() as api:
        body = {"user": "bob", "channel": "from-the-api"}
        assert await api.call("subscribe", body) == {}
        assert (await first.push())["channel"] == "from-the-api"
        first.reset()
        second, reply = await enter(server, token)
        assert list(reply["subs"]) == ["room"]
        # So the application asks again, for the connections that there are now.
        assert await api.call("subscribe", body) == {}
    assert (await second.push())["channel"] == "from-the-api"

"""What each of several processes on one SQLite file does by itself: docs/workers.md."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import jwt
import pytest

from tests.harness.fixtures import backends, server_with
from tests.harness.pair import ServerPair
from tests.harness.raw import RawClient
from tests.harness.server import Server

SECRET = "a secret of thirty-two bytes or more"
ROOM = {
    "name": "room",
    "presence": True,
    "join_leave": True,
    "force_push_join_leave": True,
    "allow_presence_for_subscriber": True,
    "allow_subscribe_for_client": True,
}

backend = backends(slow=("sqlite-workers",))
server = server_with(
    {
        "STEADWIRE_CHANNELS_NAMESPACES": json.dumps([ROOM]),
        "STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET,
    }
)


async def enter(server: Server, user: str, **claims: Any) -> RawClient:
    claims = {"sub": user, "exp": int(time.time()) + 3600, **claims}
    client = await Server.raw(server, connected=False)
    await client.connect(token=jwt.encode(claims, SECRET))
    return client


@pytest.fixture
def sides(server: ServerPair) -> tuple[Server, Server]:
    return server, server.other


async def presence(client: RawClient, channel: str) -> int:
    reply = await client.request(presence={"channel": channel})
    return len(reply["presence"]["presence"])


async def test_presence_and_joins_are_those_of_a_process(
    sides: tuple[Server, Server],
) -> None:
    here, there = [await enter(side, "u") for side in sides]
    await here.subscribe("room:1")
    await there.subscribe("room:1")
    assert [await presence(each, "room:1") for each in (here, there)] == [1, 1]


async def test_a_users_limit_is_that_of_a_process(sides: tuple[Server, Server]) -> None:
    clients = [await enter(side, "many") for side in sides for _ in range(3)]
    for client in clients:
        assert "error" in await client.request(history={"channel": "room:1"})
    await enter(sides[0], "many")  # the fourth of this process
    assert (await clients[0].closed()).code == 3504
    assert "error" in await clients[3].request(history={"channel": "room:1"})


async def test_a_disconnect_acts_on_the_process_that_answers(
    sides: tuple[Server, Server],
) -> None:
    here, there = [await enter(side, "gone") for side in sides]
    async with Server.api(sides[0]) as api:
        await api.call("disconnect", {"user": "gone"})
    assert (await here.closed()).code == 3503
    assert "error" in await there.request(history={"channel": "room:1"})


async def test_a_revocation_closes_the_clients_of_all_within_seconds(
    sides: tuple[Server, Server],
) -> None:
    clients = [await enter(side, "rob", iat=int(time.time()) - 10) for side in sides]
    async with Server.api(sides[0]) as api:
        await api.call("invalidate_user_tokens", {"user": "rob"})
    async with asyncio.timeout(10):
        for client in clients:
            assert (await client.closed()).code == 3005

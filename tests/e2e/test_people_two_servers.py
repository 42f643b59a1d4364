"""Two servers of one deployment: who is there, and what the API does to them.

Each action is asked of one server, for clients of the other.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest

from tests.harness.backends import BACKENDS
from tests.harness.raw import Closed, RawClient
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

SECRET = "a secret of thirty-two bytes or more"
ROOMS = {
    "name": "room",
    "presence": True,
    "join_leave": True,
    "force_push_join_leave": True,
    "allow_subscribe_for_client": True,
    "allow_presence_for_client": True,
}
SETTINGS = {
    "STEADWIRE_CHANNELS_NAMESPACES": json.dumps([ROOMS]),
    "STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET,
    "STEADWIRE_CONNECTIONS_USER_LIMIT": "3",
}

MakeClient = Callable[..., Any]


class Pair(NamedTuple):
    """Two servers of one deployment, started."""

    here: Server
    there: Server


Start = Callable[..., Any]


@pytest.fixture(
    params=["sqlite", pytest.param("dynamodb", marks=pytest.mark.slow)],
)
async def start(
    request: pytest.FixtureRequest, make_server: Callable[..., Server], tmp_path: Path
) -> AsyncIterator[Start]:
    """Start two servers on one store of their own."""
    store = BACKENDS[request.param]()
    if request.param == "sqlite":
        store |= {
            "STEADWIRE_STORE_PATH": str(tmp_path / "shared.db"),
            "STEADWIRE_STORE_SHARED_BY": "tests",
        }

    async def start(**more: str) -> Pair:
        settings = {**store, **SETTINGS, **more}
        servers = [make_server(settings) for _ in range(2)]
        await asyncio.gather(*[server.start() for server in servers])
        return Pair(*servers)

    yield start


@pytest.fixture(params=["js-5.8.0", "python-0.7.0"])
async def make_client(
    request: pytest.FixtureRequest, start_host: Callable[..., Any]
) -> MakeClient:
    """Make clients of one SDK, not connected yet."""
    return partial(SdkClient.create, await start_host(request.param))


def token_of(user: str) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 3600}, SECRET)


async def enter(server: Server, user: str, *channels: str) -> tuple[RawClient, str]:
    """Connect as *user* and subscribe; return the connection and its id."""
    client = await server.raw(connected=False)
    client_id = (await client.connect(token=token_of(user)))["client"]
    for channel in channels:
        await client.subscribe(channel)
    return client, client_id


async def call(server: Server, method: str, **fields: Any) -> Any:
    async with server.api() as api:
        return await api.call(method, fields)


async def until(found: Callable[[], Any], wanted: Any) -> None:
    """Ask again and again until the answer is what is wanted."""
    seen = None
    try:
        async with asyncio.timeout(60):
            while (seen := await found()) != wanted:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{seen} is not {wanted}") from None


async def users_in(server: Server, channel: str) -> Counter[str]:
    present = (await call(server, "presence", channel=channel))["presence"]
    return Counter(one["user"] for one in present.values())


def heard(client: SdkClient) -> list[tuple[str, str]]:
    """Return the joins and leaves that a client was told of, with the user of each."""
    return [
        (event["event"], event["info"]["user"])
        for event in client.log
        if event["event"] in ("join", "leave")
    ]


@pytest.mark.requirement("R12", "R38")
async def test_what_the_api_shows_and_does_at_one_server_holds_for_both(
    start: Start,
) -> None:
    here, there = await start()
    ann, ann_id = await enter(there, "ann", "room:1")
    _, bob_id = await enter(here, "bob", "room:1")
    for server in (here, there):
        await until(lambda s=server: users_in(s, "room:1"), {"ann": 1, "bob": 1})
        assert await call(server, "presence_stats", channel="room:1") == {
            "num_clients": 2,
            "num_users": 2,
        }
        found = await call(server, "channels", pattern="room:*")
        assert found == {"channels": {"room:1": {"num_clients": 2}}}
        assert len((await call(server, "info"))["nodes"]) == 2
    connections = (await call(here, "connections", user="ann"))["connections"]
    assert connections.keys() == {ann_id}
    assert connections[ann_id]["state"] == {"channels": {"room:1": {}}}

    await call(here, "subscribe", user="ann", channel="room:2", data={"n": 1})
    push = await pushed(ann, "subscribe")
    assert (push["channel"], push["subscribe"]["data"]) == ("room:2", {"n": 1})
    await call(here, "refresh", user="ann", info={"name": "Ann"})
    await until(
        lambda: name_of(here, "room:1", ann_id),
        {"name": "Ann"},
    )
    await call(here, "unsubscribe", user="ann", channel="room:2")
    push = await pushed(ann, "unsubscribe")
    assert (push["channel"], push["unsubscribe"]["code"]) == ("room:2", 2000)
    await call(here, "disconnect", user="ann", client="another")
    await call(here, "disconnect", user="ann", whitelist=[ann_id])
    await call(here, "refresh", user="ann", expired=True)
    assert (await ann.closed()).code == 3005
    await until(lambda: users_in(here, "room:1"), {"bob": 1})

    again, _ = await enter(there, "ann", "room:1")
    await call(
        here, "disconnect", user="ann", disconnect={"code": 4100, "reason": "away"}
    )
    assert (await again.closed()).code == 4100
    victim, _ = await enter(there, "ann")
    result = await call(here, "erase", user="ann")
    assert result["connections"] == 1  # it waits for the other server
    assert (await victim.closed()).code == 3503
    revoked, _ = await enter(there, "eve")
    await call(here, "invalidate_user_tokens", user="eve", issued_before=2**40)
    assert (await revoked.closed()).code == 3005
    connections = (await call(there, "connections", user="bob"))["connections"]
    assert connections.keys() == {bob_id}  # nobody else was touched


async def pushed(client: RawClient, kind: str) -> dict[str, Any]:
    """Return the next push of a kind."""
    while kind not in (push := await client.push()):
        pass
    return push


async def name_of(server: Server, channel: str, client: str) -> Any:
    present = (await call(server, "presence", channel=channel))["presence"]
    return present.get(client, {}).get("conn_info")


@pytest.mark.requirement("R2", "R3", "R12")
async def test_limits_hold_over_both_servers(start: Start) -> None:
    here, there = await start(STEADWIRE_CONNECTIONS_LIMIT="5")
    first, _ = await enter(here, "u")
    second, _ = await enter(there, "u")
    third, _ = await enter(here, "u")
    fourth, _ = await enter(there, "u")
    assert (await first.closed()).code == 3504
    assert "id" in await second.request(presence={"channel": "room:1"})
    # A server knows of its own clients when they were active last; of others, from
    # time to time.
    fifth, _ = await enter(there, "u")
    assert (await third.closed()).code == 3504
    for client in (second, fourth, fifth):
        assert "id" in await client.request(presence={"channel": "room:1"})


@pytest.mark.requirement("R3", "R12")
async def test_a_limit_over_all_holds_over_both_servers(start: Start) -> None:
    here, there = await start(
        STEADWIRE_CONNECTIONS_LIMIT="3", STEADWIRE_DYNAMODB_CLIENT_LIMIT="3"
    )
    entered = [await enter(server, "u") for server in (here, there)]
    entered.append(await enter(here, "v"))
    late = await there.raw(connected=False)
    await late.send({"id": 1, "connect": {"token": token_of("w")}})
    assert (await late.closed()).code == 3013
    (client, _), *_ = entered
    client.reset()
    assert await enter_sooner_or_later(there, "w")


async def enter_sooner_or_later(server: Server, user: str) -> bool:
    """Connect as *user* as soon as there is room."""
    async with asyncio.timeout(60):
        while True:
            client = await server.raw(connected=False)
            await client.send({"id": 1, "connect": {"token": token_of(user)}})
            try:
                return "connect" in await client.message()
            except Closed:
                await asyncio.sleep(0.05)


@pytest.mark.slow
@pytest.mark.requirement("R12", "R43")
async def test_a_killed_server_leaves_once(
    start: Start, make_client: MakeClient
) -> None:
    here, there = await start(STEADWIRE_DYNAMODB_NODE_TIMEOUT="4")
    watcher = await make_client(here.url, token=token_of("watcher"))
    await watcher.connect()
    await watcher.subscribe("room:1")
    clients = [await make_client(there.url, token=token_of(f"u{n}")) for n in range(3)]
    for client in clients:
        await client.connect()
        await client.subscribe("room:1")
    await until(lambda: len_of(heard(watcher)), 4)  # itself, too
    there.kill9()
    for client in clients:
        await client.do("disconnect")
    # A user of a dead server comes to the other one, before and after it is cleaned.
    back = await make_client(here.url, token=token_of("u0"))
    await back.connect()
    await back.subscribe("room:1")
    users = {"watcher": 1, "u0": 1}
    await until(lambda: users_in(here, "room:1"), users)
    events = Counter(heard(watcher))
    joins = {("join", user): 1 for user in ("watcher", "u1", "u2")}
    leaves = {("leave", f"u{n}"): 1 for n in range(3)}
    await until(lambda: len_of(heard(watcher)), 8)
    events = Counter(heard(watcher))
    assert events == {**joins, **leaves, ("join", "u0"): 2}
    connections = await call(here, "connections", user="u1")
    assert connections == {"connections": {}}


async def len_of(found: list[Any]) -> int:
    return len(found)


@pytest.mark.slow
@pytest.mark.requirement("R12", "R43")
async def test_a_client_that_reconnects_to_the_other_server_is_never_gone(
    start: Start, make_client: MakeClient
) -> None:
    here, there = await start()
    watcher = await make_client(here.url, token=token_of("watcher"))
    await watcher.connect()
    await watcher.subscribe("room:1")
    lost, lost_id = await enter(there, "u", "room:1")
    await until(lambda: len_of(heard(watcher)), 2)
    lost.reset()
    # It is held for its user, for 10 s, in which the user comes to the other server.
    back, back_id = await enter(here, "u", "room:1")
    await until(lambda: len_of(heard(watcher)), 4)
    assert heard(watcher)[2:] in (
        [("join", "u"), ("leave", "u")],
        [("leave", "u"), ("join", "u")],
    )
    clients = [
        (event["event"], event["info"]["client"])
        for event in watcher.log
        if event["event"] in ("join", "leave")
    ]
    assert sorted(clients[2:]) == [("join", back_id), ("leave", lost_id)]
    for server in (here, there):
        await until(lambda s=server: users_in(s, "room:1"), {"watcher": 1, "u": 1})
    assert "id" in await back.request(presence={"channel": "room:1"})

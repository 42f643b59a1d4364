"""Two servers on one DynamoDB table: limits hold over both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import jwt
import pytest

from service.core.clock import SystemClock
from tests.harness.emulators import Emulator
from tests.harness.raw import RawClient
from tests.harness.server import Server
from tests.stores.dynamodb.registry.fleet import Contents, Fleet, nothing

SECRET = "a secret of thirty-two bytes or more"


@pytest.fixture
async def fleet(ministack: Emulator) -> AsyncIterator[Fleet]:
    fleet = await Fleet(ministack.settings(), SystemClock()).create()
    yield fleet
    await fleet.close()


@pytest.fixture
def make_node(
    ministack: Emulator, fleet: Fleet, make_server: Callable[..., Server]
) -> Callable[..., Server]:
    def make(**settings: str) -> Server:
        return make_server(
            {
                **ministack.credentials,
                "STEADWIRE_STORE_BACKEND": "dynamodb",
                "STEADWIRE_DYNAMODB_TABLE": fleet.settings.table,
                "STEADWIRE_DYNAMODB_ENDPOINT": fleet.settings.endpoint,
                "STEADWIRE_DYNAMODB_REGION": fleet.settings.region,
                "STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET,
                **settings,
            }
        )

    return make


async def enter(server: Server, user: str) -> tuple[RawClient, str]:
    """Connect as *user*; return the connection and its id."""
    token = jwt.encode({"sub": user, "exp": int(time.time()) + 3600}, SECRET)
    client = await server.raw(connected=False)
    return client, (await client.connect(token=token))["client"]


async def answers(client: RawClient) -> bool:
    """Return whether it still answers."""
    reply = await client.request(history={"channel": "any"})
    return "id" in reply


async def until(fleet: Fleet, what: Callable[[Contents], Any]) -> Contents:
    async with asyncio.timeout(60):
        while not what(found := fleet.contents()):
            await asyncio.sleep(0.05)
    return found


@pytest.mark.requirement("R12")
async def test_a_fourth_connection_closes_the_least_recently_active(
    make_node: Callable[..., Server], fleet: Fleet
) -> None:
    here, there = make_node(), make_node()
    await asyncio.gather(here.start(), there.start())
    (a, a_id), (b, _), (c, _) = [await enter(here, "u") for _ in range(3)]
    other, other_id = await enter(there, "v")
    assert await answers(a)
    d, d_id = await enter(here, "u")
    assert (await b.closed()).code == 3504
    e, e_id = await enter(there, "u")
    assert (await c.closed()).code == 3504  # it is told by the table
    for client in (a, d, e, other):
        assert await answers(client)  # these are still in
    found = await until(fleet, lambda found: not found.rest)
    assert fleet.check() == found
    assert found.books["U#u"].keys() == {a_id, d_id, e_id}
    assert found.books["U#v"].keys() == {other_id}
    # One goes by itself, one with its server, and one with the close of its socket.
    a.reset()
    await until(fleet, lambda found: a_id not in found.records)
    assert await here.terminate() == 0
    assert fleet.check().books["U#u"].keys() == {e_id}
    assert await there.terminate() == 0
    assert nothing(fleet.check())
    assert "NODES" not in {item["pk"]["S"] for item in fleet.items()}


@pytest.mark.requirement("R1", "R12")
async def test_the_places_of_a_killed_server_are_free_again(
    make_node: Callable[..., Server], fleet: Fleet
) -> None:
    dead = make_node(STEADWIRE_DYNAMODB_NODE_TIMEOUT="2")
    await dead.start()
    for _ in range(3):
        await enter(dead, "u")
    assert len(fleet.check().records) == 3
    dead.kill9()
    (row,) = [item for item in fleet.items() if item["pk"]["S"] == "NODES"]
    async with asyncio.timeout(30):
        while time.time() * 1000 <= int(row["until"]["N"]):
            await asyncio.sleep(0.1)
    await make_node().start()  # it looks for the dead when it starts
    await until(fleet, nothing)
    assert nothing(fleet.check())


@pytest.mark.requirement("R12")
async def test_over_all_there_is_room_for_so_many(
    make_node: Callable[..., Server],
) -> None:
    servers = [make_node(STEADWIRE_DYNAMODB_CLIENT_LIMIT="2") for _ in range(2)]
    await asyncio.gather(*[server.start() for server in servers])
    entered = [await enter(server, f"u{n}") for n, server in enumerate(servers)]
    token = jwt.encode({"sub": "w", "exp": int(time.time()) + 3600}, SECRET)
    late = await servers[0].raw(connected=False)
    await late.send({"id": 1, "connect": {"token": token}})
    assert (await late.closed()).code == 3013
    assert len(entered) == 2


@pytest.mark.requirement("L14")
async def test_a_ticket_of_one_server_lets_in_once_at_any(
    make_node: Callable[..., Server], fleet: Fleet
) -> None:
    here, there = make_node(), make_node()
    await asyncio.gather(here.start(), there.start())
    async with here.api() as api:
        given = (await api.call("ticket", {"user": "tom"}))["ticket"]

    async def show(server: Server) -> Any:
        client = await server.raw(connected=False)
        reply = await client.request(connect={"token": given})
        return reply["error"]["code"] if "error" in reply else "in"

    outcomes = await asyncio.gather(*[show(one) for one in (here, there) * 5])
    assert sorted(map(str, outcomes)) == ["109"] * 9 + ["in"]


async def test_what_one_server_revokes_the_other_closes(
    make_node: Callable[..., Server], fleet: Fleet
) -> None:
    here, there = make_node(), make_node()
    await asyncio.gather(here.start(), there.start())
    clients = [(await enter(server, "rob"))[0] for server in (here, there)]
    bystander, _ = await enter(there, "bea")
    async with here.api() as api:
        assert await api.call("invalidate_user_tokens", {"user": "rob"}) == {}
    # How soon is a matter of its clock: tests/auth/test_revocations.py.
    for client in clients:
        assert (await client.closed()).code == 3005
    assert await answers(bystander)


@pytest.mark.requirement("R12")
async def test_what_another_server_published_is_found_by_the_position_check(
    make_node: Callable[..., Server],
) -> None:
    # A server is told of its own commits only. Nothing follows the last publication
    # of the other one, so no gap shows it: without the check it never arrives.
    settings = {
        "STEADWIRE_CLIENT_POSITION_CHECK": "0.5",
        "STEADWIRE_CLIENT_INSECURE": "true",
    }
    here, there = make_node(**settings), make_node(**settings)
    await asyncio.gather(here.start(), there.start())
    listener, _ = await enter(there, "ann")
    await listener.subscribe("ch")
    for number in range(3):
        async with here.api() as api:
            await api.call("publish", {"channel": "ch", "data": number})
        push = await listener.push(within=20.0)
        assert push["pub"] == {"data": number, "offset": number + 1}

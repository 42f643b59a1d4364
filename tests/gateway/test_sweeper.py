"""The sweeper: what is due is done, whoever else does it, and whatever fails."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import Any

import pytest

from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    FORCE_RECONNECT,
    STALE,
    Close,
    StoreUnavailable,
)
from service.core.model import ClientId, UserId
from service.core.ports import Posted, StateEntry
from service.core.sessions import PARTS, Listed, Listing, Terms
from service.gateway.sweeper import (
    AGE,
    AGE_MARGIN,
    AGE_SPREAD,
    PING,
    Sweeper,
)
from service.stores.dynamodb.registry.records import GATEWAY_NODES
from tests.clock import VirtualClock

EVERY = 180.0


def part_of(client: ClientId) -> int:
    return sum(client.encode()) % PARTS


class World:
    """Everything around a sweeper, in memory.

    Attributes:
        told: What was done, in order.
        fails: Calls that raise, by the name of what is called and its argument.
    """

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.admitted: dict[ClientId, Listed] = {}
        self.arrived: dict[ClientId, Listed] = {}
        self.evicted: set[ClientId] = set()
        self.unknown: set[ClientId] = set()  # of the gateway
        self.pinged: dict[str, float] = {}
        self.told: list[tuple[Any, ...]] = []
        self.fails: set[tuple[Any, ...]] = set()
        self.revoked: set[str] = set()
        self.known: set[str] = set()
        self.sweeper = self.another()

    def another(self) -> Sweeper:
        """Return a sweeper of another process."""
        return Sweeper(
            self,  # type: ignore[arg-type]
            self,
            self,
            self,  # type: ignore[arg-type]
            self,
            self.clock,
            ping_every=EVERY,
            stale_timeout=10.0,
        )

    def connect(self, name: str, end: float = 0.0) -> ClientId:
        client = ClientId(name)
        at = int(self.clock.wall() * 1000)
        ends = int((self.clock.wall() + end) * 1000) if end else 0
        terms = Terms(UserId("ann"), f"token of {name}", 1.0, ends)
        self.admitted[client] = Listed(client, at, terms)
        return client

    def since(self, count: int = 0) -> list[tuple[Any, ...]]:
        """Return what was done since, but pings and looks."""
        return sorted(
            (
                each
                for each in self.told[count:]
                if each[0] not in ("post", "look", "refresh")
            ),
            key=str,
        )

    def _call(self, *call: Any) -> None:
        if call in self.fails:
            raise StoreUnavailable("as the test has it")
        self.told.append(call)

    # Sessions

    async def listing(self, part: int) -> Listing:
        await asyncio.sleep(0)
        if ("listing", part) in self.fails:
            raise StoreUnavailable("as the test has it")
        return Listing(
            [each for name, each in self.admitted.items() if part_of(name) == part],
            [each for name, each in self.arrived.items() if part_of(name) == part],
            [name for name in self.evicted if part_of(name) == part],
        )

    async def settle(self, client: ClientId) -> None:
        self.evicted.discard(client)

    # Posts

    async def post(self, client: ClientId, text: str) -> Posted:
        await asyncio.sleep(0)
        assert text == PING
        self._call("post", client)
        return Posted.GONE if client in self.unknown else Posted.DELIVERED

    async def delete(self, client: ClientId) -> bool:
        raise AssertionError

    # Upkeep

    async def hang_up(self, client: ClientId, close: Close | None) -> None:
        await asyncio.sleep(0)
        self._call("hang up", client, close and close.code)
        self.admitted.pop(client, None)
        self.arrived.pop(client, None)

    async def expire(self, client: ClientId) -> None:
        self._call("expire", client)

    async def look_after(self, connections: Iterable[Listed]) -> None:
        self._call("look", *(each.client for each in connections))

    async def recount(self) -> None:
        self._call("recount")

    # Revocations

    async def refresh(self) -> None:
        self._call("refresh")
        self.known = self.revoked

    def is_revoked(self, user: UserId, token_id: str, issued_at: float) -> bool:
        assert (user, issued_at) == ("ann", 1.0)
        return token_id in self.known

    # State

    async def put(self, kind: str, key: str, value: str, ttl: float) -> None:
        self.pinged[key] = self.clock.now() + ttl

    async def entries(self, kind: str) -> list[StateEntry]:
        await asyncio.sleep(0)
        if ("entries",) in self.fails:
            raise StoreUnavailable("as the test has it")
        now = self.clock.now()
        return [StateEntry(k, "", end) for k, end in self.pinged.items() if end > now]


@pytest.fixture
def world() -> World:
    return World()


async def test_each_connection_is_pinged_once_in_a_period(world: World) -> None:
    clients = [world.connect(f"c{number}") for number in range(200)]
    for _ in range(3):  # by another process each time
        world.told.clear()
        await world.another().sweep()
        pings = [each[1] for each in world.told if each[0] == "post"]
        assert sorted(pings) == sorted(clients)
        await world.another().sweep()
        world.clock.advance(EVERY - 1.0)
        await world.another().sweep()
        assert len([each for each in world.told if each[0] == "post"]) == 200
        looked = [name for each in world.told if each[0] == "look" for name in each[1:]]
        assert sorted(looked) == sorted(clients)
        world.clock.advance(1.0)


async def test_one_that_the_gateway_does_not_know_is_ended(world: World) -> None:
    there, gone = world.connect("a"), world.connect("b")
    world.unknown.add(gone)
    await world.sweeper.sweep()
    assert world.since() == [("hang up", gone, None), ("recount",)]
    assert list(world.admitted) == [there]


async def test_sockets_that_do_not_connect_are_closed(world: World) -> None:
    client = ClientId("a")
    world.arrived[client] = Listed(client, int(world.clock.wall() * 1000))
    world.clock.advance(10.0)
    await world.sweeper.sweep()
    assert world.since() == [("recount",)]
    world.clock.advance(0.1)
    await world.sweeper.sweep()
    assert ("hang up", client, STALE.code) in world.told
    assert not world.arrived


async def test_evicted_connections_are_closed_and_settled(world: World) -> None:
    client = ClientId("a")
    world.evicted.add(client)
    world.fails.add(("hang up", client, CLOSE_CONNECTION_LIMIT.code))
    await world.sweeper.sweep()
    assert world.evicted == {client}  # the notice is left for the next sweep
    world.fails.clear()
    await world.sweeper.sweep()
    assert ("hang up", client, CLOSE_CONNECTION_LIMIT.code) in world.told
    assert not world.evicted


async def test_connections_are_sent_away_before_the_gateway_cuts_them(
    world: World,
) -> None:
    """Those of one moment are spread, and nobody stays until the cut."""
    count = 500
    for number in range(count):
        world.connect(f"c{number}")
    world.clock.advance(AGE - AGE_MARGIN - AGE_SPREAD)
    gone = []
    for _ in range(10):
        await world.sweeper.sweep()
        gone.append(count - len(world.admitted))
        world.clock.advance(AGE_SPREAD / 10)
    assert gone[0] == 0
    assert all(20 <= b - a <= 90 for a, b in itertools.pairwise(gone))
    await world.sweeper.sweep()
    assert not world.admitted
    ends = {each for each in world.told if each[0] == "hang up"}
    assert len(ends) == count
    assert {end[2] for end in ends} == {FORCE_RECONNECT.code}


async def test_connections_with_revoked_tokens_are_ended(world: World) -> None:
    """Those of which nobody else knows: one token is in no list of connections."""
    there, revoked = world.connect("a"), world.connect("b")
    await world.sweeper.sweep()
    world.revoked.add("token of b")
    await world.another().sweep()
    assert world.since() == [("expire", revoked), ("recount",), ("recount",)]
    assert [*world.admitted] == [there, revoked]  # until it was done


async def test_what_has_expired_is_ended(world: World) -> None:
    early, late = world.connect("a", end=60.0), world.connect("b", end=61.0)
    never = world.connect("c")
    world.clock.advance(60.0)
    await world.sweeper.sweep()
    assert world.since() == [("expire", early), ("recount",)]
    assert {early, late, never} <= set(world.admitted)


async def test_a_fault_with_one_does_not_keep_the_others_waiting(world: World) -> None:
    clients = [world.connect(f"c{number}") for number in range(100)]
    world.fails.add(("post", clients[3]))
    world.fails.add(("listing", part_of(clients[7])))
    await world.sweeper.sweep()
    behind = {each for each in clients if part_of(each) == part_of(clients[7])}
    pings = {each[1] for each in world.told if each[0] == "post"}
    assert pings == set(clients) - behind - {clients[3]}
    assert ("recount",) in world.told
    world.fails.clear()
    world.told.clear()
    await world.sweeper.sweep()  # the part that failed is still due
    assert {each[1] for each in world.told if each[0] == "post"} == behind


async def test_pings_go_on_where_it_is_not_known_who_was_pinged(world: World) -> None:
    client = world.connect("a")
    await world.sweeper.sweep()
    world.fails.add(("entries",))
    world.told.clear()
    await world.sweeper.sweep()
    assert ("post", client) in world.told


async def test_two_sweeps_at_once_do_no_harm(world: World) -> None:
    clients = [world.connect(f"c{number}") for number in range(50)]
    world.unknown.update(clients[:10])
    world.evicted.update(clients[10:20])
    await asyncio.gather(world.sweeper.sweep(), world.another().sweep())
    assert set(world.admitted) == set(clients[20:])
    assert not world.evicted


@pytest.mark.parametrize("step", range(0, 60, 3))
async def test_a_sweep_that_is_cut_off_is_finished_by_the_next(
    world: World, step: int
) -> None:
    clients = [world.connect(f"c{number}") for number in range(40)]
    old = ClientId("old")
    world.arrived[old] = Listed(old, int((world.clock.wall() - 60) * 1000))
    world.unknown.update(clients[:5])
    world.evicted.update(clients[5:8])
    task = asyncio.ensure_future(world.sweeper.sweep())
    for _ in range(step):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await world.another().sweep()
    assert set(world.admitted) == set(clients[8:])
    assert not world.arrived and not world.evicted
    pings = {each[1] for each in world.told if each[0] == "post"}
    assert pings >= set(clients[8:])


def test_every_part_of_the_store_is_swept() -> None:
    assert len(GATEWAY_NODES) == PARTS

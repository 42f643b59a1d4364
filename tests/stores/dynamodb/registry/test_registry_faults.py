"""Every mishap at every call: afterwards counts are exact, and no record is lost."""

from __future__ import annotations

import pytest

from tests.stores.dynamodb.mishaps import MISHAPS, Death, Mishap
from tests.stores.dynamodb.registry.fleet import (
    admit,
    nothing,
    subscribe,
    unsubscribe,
)
from tests.stores.dynamodb.support import Faults


@pytest.fixture
def emulator(ministack):
    """Return the emulator with atomic transactions that know their tokens."""
    return ministack


MOST = 14  # calls of one kind of work below


class World:
    """Two processes and a user with three connections, all subscribed."""

    def __init__(self, fleet, clock):
        self.fleet = fleet
        self.clock = clock
        self.faults = Faults()
        self.known = set()

    async def begin(self):
        self.one = await self.fleet.process(self.faults)
        self.two = await self.fleet.process()
        for directory, client in ((self.one, "a"), (self.two, "b"), (self.one, "c")):
            await admit(directory, "u", client)
            self.known.add(client)
            await self.subscribe(directory, client)
            self.clock.advance(1)
        return self

    async def subscribe(self, directory, client):
        await subscribe(directory, client, "n")

    # The work during which something goes wrong.

    async def admission(self):
        self.known.add("d")
        assert await admit(self.one, "u", "d") == ["a"]

    async def leave(self):
        self.known.discard("a")
        await self.one.leave("a")

    async def subscription(self):
        await subscribe(self.one, "a", "m")

    async def unsubscription(self):
        await unsubscribe(self.one, "a", "n")

    async def touch(self):
        await self.one.touch({"a": self.clock.wall(), "c": self.clock.wall() - 0.5})

    async def recount(self):
        await self.one.maintenance.recount()

    async def reaping(self):
        self.clock.advance(40)
        await self.one.heartbeat()
        await self.one.maintenance.reap()

    async def readmission(self):
        self.clock.advance(41)
        await self.two.heartbeat()
        await self.two.maintenance.reap()
        await self.one.heartbeat()

    async def finish(self):
        """All leave, or their nodes are reaped; nothing may be left."""
        alive = [self.two]
        if self.one is not None:
            alive.append(self.one)
            for client in ("a", "c", "d"):
                await self.one.leave(client)
                await unsubscribe(self.one, client, "n")
            await unsubscribe(self.one, "a", "m")
        await self.two.leave("b")
        await unsubscribe(self.two, "b", "n")
        last = await self.fleet.process()
        self.clock.advance(41)
        for directory in alive:
            await directory.heartbeat()
        await last.heartbeat()
        await last.maintenance.reap()
        assert nothing(self.fleet.check())
        assert await last.total() == 0


WORK = [
    "admission",
    "leave",
    "subscription",
    "unsubscription",
    "touch",
    "recount",
    "reaping",
    "readmission",
]


ALL = [(work, kind) for work in WORK for kind in MISHAPS]


# The most telling ones; all of them take minutes.
SOME = [(work, "dead after") for work in WORK] + [
    ("admission", "answer lost"),
    ("admission", "conflict"),
    ("leave", "answer lost"),
    ("leave", "throttled"),
]


@pytest.mark.parametrize(("work", "kind"), SOME)
async def test_a_mishap_at_any_call(make_fleet, clock, work, kind):
    happened = 0
    for number in range(MOST):
        fleet = await make_fleet()
        world = await World(fleet, clock).begin()
        mishap = Mishap(world.faults, number, kind)
        try:
            await getattr(world, work)()
        except Death:
            world.one = None
        mishap.end()
        fleet.check()
        await world.finish()
        if not mishap.happened:
            break
        happened += 1
    else:
        raise AssertionError("there are more calls than MOST")
    assert happened > 0


@pytest.mark.slow
@pytest.mark.parametrize(("work", "kind"), sorted({*ALL} - {*SOME}))
async def test_any_mishap_at_any_call(make_fleet, clock, work, kind):
    await test_a_mishap_at_any_call(make_fleet, clock, work, kind)

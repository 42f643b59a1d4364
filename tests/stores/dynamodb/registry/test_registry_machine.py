"""Any sequence of what processes do, with mishaps, against a model of a page.

The model knows who has a place, of which process, and when it was last active as far as
the table knows. What it leaves open: after a death in the middle of an admission or a
leave, whether that was done (it is seen in the table, and must be all or nothing).
Everything else is compared exactly after each step, and all counts with what they are
derived from. Hypothesis prints what reproduces a failure.
"""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.clock import VirtualClock
from tests.stores.dynamodb.mishaps import MISHAPS, Death, Mishap
from tests.stores.dynamodb.registry.fleet import Fleet, admit
from tests.stores.dynamodb.support import Faults, StoreClock

PROCESSES = 3
LIMIT = 2  # of a user

processes = st.integers(0, PROCESSES - 1)
users = st.sampled_from(["u", "v"])
mishaps = st.none() | st.tuples(st.sampled_from(sorted(MISHAPS)), st.integers(0, 5))


class Machine(RuleBasedStateMachine):
    emulator = None

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.virtual = VirtualClock()
        self.serial = 0
        self.fleet = None

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    @initialize()
    def begin(self):
        clock = StoreClock(self.virtual)
        self.fleet = self.run(
            Fleet(self.emulator.settings(), clock, user=LIMIT).create()
        )
        self.faults = {}
        self.live = {}  # number: directory
        self.told = {}  # client: number of the process that has it, place or not
        self.places = {}  # client: [user, number, active]
        self.left = set()  # places of processes that have died
        for number in range(PROCESSES):
            self.replace(number)

    def replace(self, number):
        self.faults[number] = Faults()
        self.live[number] = self.run(self.fleet.process(self.faults[number]))

    def teardown(self):
        if self.fleet is not None:
            self.run(self.end())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    async def end(self):
        """All leave or are reaped; then nothing may be left."""
        for client, number in self.told.items():
            await self.live[number].leave(client)
        last = await self.fleet.process()
        self.virtual.advance(41)
        await last.heartbeat()
        await last.maintenance.reap()
        found = self.fleet.check()
        assert (found.records, found.books, found.rest) == ({}, {}, [])
        assert await last.total() == 0
        await self.fleet.close()

    # Doing things, with a mishap or without.

    def attempt(self, number, work, mishap):
        """Return what came of it, or `Death`; then the process is another one."""
        hook = Mishap(self.faults[number], mishap[1], mishap[0]) if mishap else None
        try:
            outcome = self.run(work(self.live[number]))
        except Death:
            outcome = Death
        if hook is not None:
            hook.end()
        if outcome is Death:
            gone = [c for c, n in self.told.items() if n == number]
            self.left.update(c for c in gone if c in self.places)
            for client in gone:
                del self.told[client]
            self.replace(number)
        return outcome

    def compare(self):
        found = self.fleet.check()
        assert found.records.keys() == self.places.keys()
        return found

    def adopt(self, before, after):
        """Take over what the table says, if it is one of the two."""
        found = self.fleet.check().records.keys()
        assert found in (before.keys(), after.keys()), (found, before, after)
        self.places = dict(before if found == before.keys() else after)
        self.left &= self.places.keys()

    @rule(number=processes, user=users, mishap=mishaps)
    def enter(self, number, user, mishap):
        self.serial += 1
        client = f"c{self.serial}"
        self.virtual.advance(0.01)  # no two are equally active
        before = dict(self.places)
        mine = {c: p for c, p in before.items() if p[0] == user}
        after = dict(before)
        evicted = []
        if len(mine) >= LIMIT:
            evicted = sorted(mine, key=lambda c: mine[c][2])[: len(mine) + 1 - LIMIT]
            for one in evicted:
                del after[one]
        after[client] = (user, number, self.virtual.wall())
        self.told[client] = number
        outcome = self.attempt(number, lambda d: admit(d, user, client), mishap)
        if outcome is Death:
            self.adopt(before, after)
            if client in self.places:
                self.left.add(client)
            return
        assert outcome == evicted
        self.places = after
        self.left &= after.keys()
        self.compare()

    @rule(data=st.data(), mishap=mishaps)
    def leave(self, data, mishap):
        if not self.told:
            return
        client = data.draw(st.sampled_from(sorted(self.told)))
        number = self.told[client]
        before = dict(self.places)
        after = {c: p for c, p in before.items() if c != client}
        outcome = self.attempt(number, lambda d: d.leave(client), mishap)
        if outcome is Death:
            self.adopt(before, after)
            if client in self.places:
                self.left.add(client)
            return
        del self.told[client]
        self.places = after
        self.compare()

    @rule(data=st.data(), mishap=mishaps)
    def active(self, data, mishap):
        if not self.told:
            return
        client = data.draw(st.sampled_from(sorted(self.told)))
        number = self.told[client]
        self.virtual.advance(0.01)
        now = self.virtual.wall()
        outcome = self.attempt(number, lambda d: d.touch({client: now}), mishap)
        place = self.places.get(client)
        if place is None:
            return
        others = [p for p in self.places.values() if p[0] == place[0]]
        book = self.fleet.check().books[f"U#{place[0]}"]
        written = int(book[client]["M"]["active"]["N"])
        if outcome is Death:
            assert written in (int(place[2] * 1000), int(now * 1000))
        else:
            # Known in its process in any case, and in the table if it matters.
            assert len(others) == 1 or written == int(now * 1000)
        if outcome is not Death or written == int(now * 1000):
            self.places[client] = (place[0], place[1], now)

    @rule(number=processes)
    def told_to_go(self, number):
        evicted = self.run(self.live[number].evictions())
        mine = {c for c, n in self.told.items() if n == number}
        assert set(evicted) == mine - self.places.keys()
        for client in evicted:
            self.run(self.live[number].leave(client))
            del self.told[client]
        self.compare()

    @rule(number=processes)
    def die(self, number):
        async def dead(directory):
            raise Death

        self.attempt(number, dead, None)
        self.compare()

    @rule(number=processes, mishap=mishaps)
    def reap(self, number, mishap):
        async def reap(directory):
            await directory.heartbeat()
            await directory.maintenance.reap()

        self.virtual.advance(41)
        for other in range(PROCESSES):
            if other != number:
                self.run(self.live[other].heartbeat())
        left = set(self.left)
        outcome = self.attempt(number, reap, mishap)
        if outcome is Death:
            found = self.fleet.check().records.keys()
            assert self.places.keys() - left <= found <= self.places.keys()
        else:
            found = self.places.keys() - left
        self.places = {c: p for c, p in self.places.items() if c in found}
        self.left &= self.places.keys()
        self.compare()

    @rule(number=processes)
    def recount(self, number):
        assert self.run(self.live[number].maintenance.recount()) == 0
        self.compare()


def test_any_sequence(ministack):
    machine = type("Machine", (Machine,), {"emulator": ministack})
    case = machine.TestCase
    case.settings = settings(
        max_examples=15,
        stateful_step_count=15,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    case("runTest").runTest()

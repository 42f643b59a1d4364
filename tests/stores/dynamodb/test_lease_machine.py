"""Three writers, a holder and a watchdog on one channel, any sequence, any faults.

The appenders, leases, rows and rounds are the real ones, on an emulator; posts go to
clients that the machine plays. Faults are cancelled transactions and lost answers, of
appends and of HEAD's other writes alike, and time that passes until leases expire.

At rest, which is after each run of the watchdog: HEAD is free, no active row is behind,
offsets are dense, no publication is in the log twice, and what was acknowledged is
there. Hypothesis prints what reproduces a failure.
"""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.core.errors import StoreError
from service.core.lease import LEASE_SECONDS
from service.core.model import Channel, ClientId, RawJson, UserId
from service.core.ports import Claim, History, Posted, RowState, SubscriberRow
from service.gateway.rounds import Rounds
from service.stores.dynamodb.errors import OutcomeUnknown
from tests.clock import VirtualClock
from tests.harness.emulators import running
from tests.stores.dynamodb.support import (
    Faults,
    StoreClock,
    TableStore,
    conflict,
    lost,
    refusal,
)
from tests.stores.support import Bench

NEWS = Channel("news")
KEPT = History(10_000, 36_000.0)
TIMEOUT = 4.9  # s
WRITERS = 3

BEFORE = {
    "conflict": lambda operation: (
        conflict(2)
        if operation == "TransactWriteItems"
        else refusal("TransactionConflictException")
    ),
    "throttled": lambda operation: refusal("ThrottlingException"),
}
FAULTS = st.lists(st.sampled_from([*BEFORE, "lost", "lost for good"]), max_size=2)
WRITES = ("TransactWriteItems", "UpdateItem")


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = VirtualClock()
        self.table = running("ministack").settings().table
        self.serial = 0
        self.tokens = 0
        self.acknowledged = set()
        self.holds = []
        self.got = {}  # of each client, from where it began
        self.commands = {}
        self.writers = [self.run(self.opened()) for _ in range(WRITERS)]

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    async def opened(self):
        faults = Faults()
        values = {"table": self.table, "timeout": TIMEOUT, "leases": True}
        store = TableStore(
            running("ministack").settings(**values), StoreClock(self.clock), faults
        )
        bench = await Bench(store, self.clock).start()
        bench.faults = faults
        inner = store.store
        inner.holder = self
        bench.rounds = Rounds(
            inner.leases,
            inner.subscribers,
            inner.leases,
            self,
            store.clock,
            token=self.token,
            forget=self.forget,
        )
        return bench

    def teardown(self):
        for writer in self.writers:
            self.run(writer.store.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()

    # What the store and the rounds need

    hands_over = False

    def took(self, hold):
        self.holds.append(hold)

    def token(self):
        self.tokens += 1
        return f"t{self.tokens}"

    async def forget(self, client):
        self.got.pop(client, None)

    async def post(self, client, text):
        if client not in self.got:
            return Posted.GONE
        for message in map(json.loads, text.split("\n")):
            if "pub" in message["push"]:
                self.got[client].append(message["push"]["pub"]["offset"])
        return Posted.DELIVERED

    async def delete(self, client):
        self.got.pop(client, None)
        return True

    # Faults

    def plant(self, writer, names):
        left = list(names)

        def before(operation):
            if operation in WRITES and left and left[0] in BEFORE:
                return BEFORE[left.pop(0)](operation)
            return None

        def after(operation):
            if operation in WRITES and left and left[0] not in BEFORE:
                if left.pop(0) == "lost for good":
                    writer.store.clock.ahead += TIMEOUT
                lost(operation)

        writer.faults.before.append(before)
        writer.faults.after.append(after)

    def unplant(self):
        for writer in self.writers:
            writer.faults.before.clear()
            writer.faults.after.clear()

    # Rules

    @rule(
        drafts=st.lists(st.integers(0, WRITERS - 1), min_size=1, max_size=6),
        faults=st.tuples(FAULTS, FAULTS, FAULTS),
    )
    def append(self, drafts, faults):
        """Several writers append at once; what they take is delivered later."""

        async def together():
            for writer, names in zip(self.writers, faults, strict=True):
                self.plant(writer, names)
            done = []
            for index in drafts:
                self.serial += 1
                data = json.dumps(self.serial)
                done.append(self.writers[index].append("news", data, KEPT))
            return await asyncio.gather(*done, return_exceptions=True)

        first = self.serial + 1
        outcomes = self.run(together())
        self.unplant()
        for number, outcome in enumerate(outcomes, first):
            if not isinstance(outcome, Exception):
                self.acknowledged.add(json.dumps(number))
            else:
                assert isinstance(outcome, (OutcomeUnknown, StoreError)), outcome

    @rule(index=st.integers(0, WRITERS - 1), faults=FAULTS)
    def deliver(self, index, faults):
        """A hold that was taken is delivered, while its HEAD's writes meet faults."""
        if not self.holds:
            return
        writer = self.writers[index]
        hold = self.holds.pop(0)
        ends = writer.store.clock.now() + 60.0
        self.plant(writer, faults)
        self.run(writer.rounds.deliver(hold._replace(deadline=ends)))
        self.unplant()

    @rule()
    def lose(self):
        """The holder dies before it has posted anything."""
        if self.holds:
            self.holds.pop(0)

    @rule(name=st.sampled_from("ab"), index=st.integers(0, WRITERS - 1))
    def subscribe(self, name, index):
        store = self.writers[index].store.store
        command = self.commands[name] = self.commands.get(name, 0) + 1
        client = ClientId(f"{name}{command}")  # a connection of its own

        async def join():
            row = SubscriberRow(client, UserId("u"), RawJson("{}"), command=command)
            assert await store.subscribers.claim(NEWS, row, "{}") is Claim.MINE
            page = await store.read_fresh(NEWS, KEPT, 0, -1)
            self.got[client] = [p.offset for p in page.publications]
            await store.subscribers.activate(NEWS, client, command, page.top)

        self.run(join())

    @rule(index=st.integers(0, WRITERS - 1))
    def remove(self, index):
        """The history goes; what was acknowledged before is not looked for any more."""
        self.run(self.writers[index].store.remove(NEWS))
        self.acknowledged.clear()

    @rule(index=st.integers(0, WRITERS - 1))
    def watch(self, index):
        """Everything comes to rest: all leases expire, and the watchdog looks."""
        writer = self.writers[index]
        self.holds.clear()
        self.clock.advance(2 * LEASE_SECONDS + 60)

        async def look():
            hold = await writer.rounds.watch(NEWS)
            if hold is not None:
                await writer.rounds.deliver(hold)

        self.run(look())
        for other in self.writers:
            other.store.clock.ahead = max(w.store.clock.ahead for w in self.writers)
        self.run(look())
        self.at_rest(writer)

    def at_rest(self, writer):
        store = writer.store.store
        state = self.run(store.leases.read(NEWS))
        assert state.owner == ""
        for row in self.run(store.subscribers.rows(NEWS)):
            if row.state is RowState.ACTIVE:
                got = self.got[row.client]
                assert not got or got[-1] == state.top.offset, row
                assert got or row.position.offset == state.top.offset, row
        page = self.run(store.read_fresh(NEWS, KEPT, 0, -1))
        offsets = [p.offset for p in page.publications]
        first = page.top.offset - len(offsets) + 1
        assert offsets == list(range(first, page.top.offset + 1))
        data = [p.data for p in page.publications]
        assert len(set(data)) == len(data)
        assert self.acknowledged <= set(data)

    @invariant()
    def no_client_has_a_gap_or_a_double(self):
        for offsets in self.got.values():
            if offsets:
                whole = list(range(offsets[0], offsets[0] + len(offsets)))
                assert offsets == whole


def test_any_sequence_of_calls_and_faults():
    run(5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_sequences_of_calls_and_faults():
    run(60)


def run(examples):
    case = Machine.TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=14, deadline=None, print_blob=True
    )
    case("runTest").runTest()

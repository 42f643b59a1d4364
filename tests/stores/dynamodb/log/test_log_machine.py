"""Two processes, any sequence of calls, any faults, against a simple model.

The model knows of each publication whether it was acknowledged, refused, or nobody can
say. Whatever happens: what was acknowledged is at its offset for good, what was refused
is nowhere, offsets are dense, and no key is there twice. Hypothesis prints what
reproduces a failure.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.core.errors import StoreError
from service.core.ports import History
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
    timed_out,
)
from tests.stores.support import Bench

HISTORY = History(10_000, 3600.0)

TIMEOUT = 4.9  # s

BEFORE = {
    "conflict": lambda _: conflict(2),
    "throttled": lambda _: refusal("ThrottlingException"),
    "broken": lambda _: refusal("InternalServerError", 500),
    "not sent": timed_out,
}
AFTER = {"lost": lost}
LAST = {"broken", "not sent", "lost"}  # the deadline passes meanwhile
FAULTS = st.lists(st.sampled_from([*BEFORE, *AFTER]), max_size=2)
KEYS = st.sampled_from(["", "", "k", "l"])


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = VirtualClock()
        self.table = running("ministack").settings().table
        self.serial = 0
        self.acknowledged = {}  # offset: data
        self.unknown = set()  # data
        self.refused = set()
        self.keys = {}  # key: offset, once acknowledged
        self.benches = [self.run(self.opened()) for _ in range(2)]

    async def opened(self):
        faults = Faults()
        store = TableStore(
            running("ministack").settings(table=self.table, timeout=TIMEOUT),
            StoreClock(self.clock),
            faults,
        )
        bench = await Bench(store, self.clock).start()
        bench.faults = faults
        return bench

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def teardown(self):
        for bench in self.benches:
            self.run(bench.store.close())
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()

    @rule(
        drafts=st.lists(st.tuples(st.integers(0, 1), KEYS), min_size=1, max_size=6),
        faults=st.tuples(FAULTS, FAULTS),
    )
    def append(self, drafts, faults):
        async def together():
            done = []
            for bench, names in zip(self.benches, faults, strict=True):
                self.plant(bench, names)
            for index, key in drafts:
                self.serial += 1
                data = str(self.serial)
                done.append(
                    self.benches[index].append("a", data, HISTORY, idempotency_key=key)
                )
            return await asyncio.gather(*done, return_exceptions=True)

        first = self.serial + 1
        outcomes = self.run(together())
        for bench in self.benches:
            bench.faults.before.clear()
            bench.faults.after.clear()
        for data, (_, key), outcome in zip(
            map(str, range(first, self.serial + 1)), drafts, outcomes, strict=True
        ):
            self.note(data, key, outcome)

    def plant(self, bench, names):
        left = list(names)

        def meet(faults, operation):
            name = left.pop(0)
            if name in LAST:
                bench.store.clock.ahead += TIMEOUT
            return faults[name](operation)

        def before(operation):
            if operation == "TransactWriteItems" and left and left[0] in BEFORE:
                return meet(BEFORE, operation)
            return None

        def after(operation):
            if operation == "TransactWriteItems" and left and left[0] in AFTER:
                meet(AFTER, operation)

        bench.faults.before.append(before)
        bench.faults.after.append(after)

    def note(self, data, key, outcome):
        if isinstance(outcome, OutcomeUnknown):
            self.unknown.add(data)
        elif isinstance(outcome, StoreError):
            self.refused.add(data)
        else:
            offset = outcome.position.offset
            if outcome.fresh:
                assert offset not in self.acknowledged
                self.acknowledged[offset] = data
            if key:
                assert self.keys.setdefault(key, offset) == offset

    @rule(index=st.integers(0, 1))
    def crash(self, index):
        """Another process takes the place of one, and knows nothing."""
        self.run(self.benches[index].store.close())
        self.benches[index] = self.run(self.opened())

    @rule(seconds=st.sampled_from([0.05, 0.2, 2.0]))
    def wait(self, seconds):
        for bench in self.benches:
            bench.store.clock.ahead += seconds

    @invariant()
    def all_is_well(self):
        for bench in self.benches:
            bench.store.clock.ahead += 0.2  # else it may be what it was
            page = self.run(bench.read("a", 0, history=HISTORY))
            offsets = [p.offset for p in page.publications]
            assert offsets == list(range(1, page.top.offset + 1))
            found = {p.offset: p.data for p in page.publications}
            assert self.acknowledged.items() <= found.items()
            others = set(found.values()) - set(self.acknowledged.values())
            assert others <= self.unknown
            assert len(set(found.values())) == len(found)
            told = [c.publication.offset for c in bench.told]
            assert told == sorted(set(told))


def test_any_sequence_of_calls_and_faults():
    run(Machine, 5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_sequences_of_calls_and_faults():
    run(Machine, 150)


def run(machine, examples):
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=12, deadline=None, print_blob=True
    )
    case("runTest").runTest()

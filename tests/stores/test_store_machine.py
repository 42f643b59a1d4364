"""Any sequence of calls, against a model that is a page long.

What the model leaves open, because the port does: metadata may be deleted at any time
after it has expired. Everything else is compared exactly. Hypothesis prints what
reproduces a failure.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from operator import itemgetter
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from service.core.ports import History
from tests.clock import VirtualClock
from tests.stores.support import DURABLE, FACTORIES, Bench

HISTORY = {
    "a": History(5, 10.0, meta_ttl=1000.0),
    "b": History(200, 400.0, meta_ttl=100.0),
    "c": History(0, 0.0),
}
CHANNELS = st.sampled_from(sorted(HISTORY))
KEYS = st.sampled_from(["", "", "", "k", "l"])
VERSIONS = st.sampled_from([0, 0, 0, 1, 2, 3])
DRAFTS = st.lists(st.tuples(CHANNELS, KEYS, VERSIONS), min_size=1, max_size=40)


class Stream:
    """The model of one channel."""

    def __init__(self):
        self.epoch = None  # not seen yet
        self.top = 0
        self.kept = []  # (offset, time, data)
        self.touched = 0.0
        self.version = 0
        self.dead_epochs = set()

    def restart(self):
        self.dead_epochs.add(self.epoch)
        self.epoch, self.top, self.kept, self.version = None, 0, [], 0


class Machine(RuleBasedStateMachine):
    factory = None
    durable = False

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.path = Path(tempfile.mkdtemp())
        self.clock = VirtualClock()
        self.streams = {name: Stream() for name in HISTORY}
        self.keys = {}  # (channel, key): (offset, expires)
        self.expected = []  # what the listener should have been told of
        self.serial = 0
        self.bench = None
        self.open()

    def open(self):
        told = self.bench.told if self.bench else []
        self.bench = Bench(type(self).factory(self.path, self.clock), self.clock)
        self.bench.told = told
        self.run(self.bench.start())

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def teardown(self):
        self.run(self.bench.store.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.path)

    # Expectations of the model

    def settle(self, name, position):
        """Note an epoch, or a restart if one was allowed."""
        stream = self.streams[name]
        if stream.epoch is not None and position.epoch != stream.epoch:
            assert self.clock.wall() >= stream.touched + HISTORY[name].meta_ttl
            assert self.alive(name) == []
            stream.restart()
        stream.epoch = position.epoch
        assert position.epoch not in stream.dead_epochs | {"", "_"}

    def alive(self, name):
        oldest = self.clock.wall() - HISTORY[name].ttl
        kept = [p for p in self.streams[name].kept if p[1] > oldest]
        return kept[-HISTORY[name].size :]

    @rule(drafts=DRAFTS)
    def append(self, drafts):
        async def together():
            done = []
            for channel, key, version in drafts:
                self.serial += 1
                done.append(
                    self.bench.append(
                        channel,
                        str(self.serial),
                        HISTORY[channel],
                        idempotency_key=key,
                        version=version,
                    )
                )
            return await asyncio.gather(*done)

        serial = self.serial
        outcomes = self.run(together())
        for (channel, key, version), outcome in zip(drafts, outcomes, strict=True):
            serial += 1
            self.check(channel, key, version, outcome, str(serial))
        told = [
            (c.channel, c.publication.offset, c.publication.data)
            for c in self.bench.told
        ]
        # Stable: the order within a channel counts, that of the channels does not.
        assert sorted(told, key=itemgetter(0)) == sorted(
            self.expected, key=itemgetter(0)
        )

    def check(self, channel, key, version, outcome, data):
        now = self.clock.wall()
        stream, history = self.streams[channel], HISTORY[channel]
        known = self.keys.get((channel, key)) if key else None
        if known is not None and known[1] > now:
            assert not outcome.fresh
            assert outcome.position.offset == known[0], (
                outcome,
                known,
                now,
                channel,
                key,
                data,
            )
            return
        if not history.size:
            assert outcome == ((0, ""), True)
            offset = 0
        else:
            self.settle(channel, outcome.position)
            if version and version <= stream.version:
                assert outcome == ((stream.top, stream.epoch), False)
                return
            stream.version = version or stream.version
            stream.top += 1
            offset = stream.top
            assert outcome == ((offset, stream.epoch), True)
            stream.kept.append((offset, now, data))
            stream.touched = now
        self.expected.append((channel, offset, data))
        if key:
            self.keys[channel, key] = (offset, now + 300.0)

    @rule(
        channel=CHANNELS,
        since=st.none() | st.integers(0, 60),
        limit=st.sampled_from([-1, 0, 1, 3, 100]),
        reverse=st.booleans(),
    )
    def read(self, channel, since, limit, reverse):
        page = self.run(
            self.bench.read(
                channel, since, limit, history=HISTORY[channel], reverse=reverse
            )
        )
        self.compare(channel, page, since, limit, reverse)
        if not reverse:
            page = self.bench.store.peek(channel, HISTORY[channel], since or 0, limit)
            if page is not None:
                self.compare(channel, page, since or 0, limit, False)

    def compare(self, channel, page, since, limit, reverse):
        self.settle(channel, page.top)
        stream = self.streams[channel]
        assert page.top.offset == stream.top
        wanted = [(p[0], p[2]) for p in self.alive(channel)]
        if reverse:
            wanted = [p for p in wanted[::-1] if since is None or p[0] < since]
        else:
            wanted = [p for p in wanted if since is None or p[0] > since]
        found = [(p.offset, p.data) for p in page.publications]
        assert found == (wanted if limit < 0 else wanted[:limit])

    @rule(channel=CHANNELS)
    def remove(self, channel):
        self.run(self.bench.store.remove(channel))
        self.streams[channel].kept.clear()

    @rule(seconds=st.sampled_from([1, 9, 10, 29, 90, 299, 1000]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @rule()
    def sweep(self):
        self.run(self.bench.sweep())

    @rule()
    def restart(self):
        if self.durable:
            self.run(self.bench.store.close())
            self.open()


EXAMPLES = {"ministack": 10, "moto": 3}  # their calls take milliseconds


@pytest.mark.parametrize("name", FACTORIES)
def test_any_sequence_of_calls(name):
    machine = type(
        "Machine",
        (Machine,),
        {"factory": staticmethod(FACTORIES[name]), "durable": name in DURABLE},
    )
    case = machine.TestCase
    case.settings = settings(
        max_examples=EXAMPLES.get(name, 40),
        stateful_step_count=30,
        deadline=None,
        print_blob=True,
    )
    case("runTest").runTest()

"""G3 under random commits, deliveries, joins, leaves, reads and trims.

What must hold at every step is checked by `Seat`: offsets dense and increasing from
where the reply left off, no push before the reply or after the end. `settle` checks
what must hold once everything has arrived: each member that was not told of a loss has
everything up to the top.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.core.errors import StoreUnavailable
from service.core.model import Joined, Position
from tests.world.script import A, B, ScriptedMember, Seat
from tests.world.scripted import ScriptedWorld

CHANNELS = st.sampled_from([A, A, A, B])
MEMBERS = st.integers(0, 1)


class Feed(RuleBasedStateMachine):
    """The store keeps its promises: each commit is told of once, in order."""

    def __init__(self) -> None:
        super().__init__()
        # Two payloads of two bytes a piece, six publications of a gap.
        self.world = ScriptedWorld(recovery_size=5, recovery_limit=6)
        self.store = self.world.store
        self.members = [self.world.member() for _ in range(2)]

    def current(self, member: ScriptedMember, channel: Any) -> Seat | None:
        seats = member.seats.get(channel)
        return seats[-1] if seats and not seats[-1].ended else None

    @rule(channel=CHANNELS, count=st.integers(1, 4))
    def commit(self, channel: Any, count: int) -> None:
        self.store.commit(channel, *["10"] * count)

    @rule(count=st.integers(1, 5))
    def tell(self, count: int) -> None:
        self.store.tell(count)

    @rule(channel=CHANNELS, count=st.integers(1, 3))
    def publish(self, channel: Any, count: int) -> None:
        self.store.commit(channel, *["10"] * count)
        self.store.tell()

    @rule(channel=CHANNELS)
    def publish_without_history(self, channel: Any) -> None:
        self.store.commit(channel, "99", skip_history=True)

    @rule(
        number=MEMBERS,
        channel=CHANNELS,
        back=st.none() | st.integers(-1, 8),
        epoch=st.sampled_from(["", "same", "other"]),
    )
    def join(self, number: int, channel: Any, back: int | None, epoch: str) -> None:
        member = self.members[number]
        if self.current(member, channel) is not None:
            return
        stream = self.store.stream(channel)
        asked = None
        if back is not None:
            named = stream.epoch if epoch == "same" else epoch
            asked = Position(max(0, stream.top - back), named)
        member.join(channel, asked)

    @rule(number=MEMBERS, channel=CHANNELS)
    def leave(self, number: int, channel: Any) -> None:
        seat = self.current(self.members[number], channel)
        if seat is not None:
            self.members[number].leave(seat)

    @rule(number=MEMBERS)
    def drain(self, number: int) -> None:
        self.members[number].drain()

    @rule(number=MEMBERS)
    def fill(self, number: int) -> None:
        """Something else is written to this connection."""
        self.members[number].waiting.append("other")

    @precondition(lambda self: self.store.reads)
    @rule(number=st.integers(0, 7), look=st.booleans())
    def finish_read(self, number: int, look: bool) -> None:
        read = self.store.reads[number % len(self.store.reads)]
        if look:
            read.look()
        read.finish()

    @precondition(lambda self: self.store.reads)
    @rule(number=st.integers(0, 7))
    def fail_read(self, number: int) -> None:
        read = self.store.reads[number % len(self.store.reads)]
        read.finish(StoreUnavailable("locked"))

    @rule(channel=CHANNELS, keep=st.integers(0, 3))
    def trim(self, channel: Any, keep: int) -> None:
        self.store.trim(channel, keep)

    @rule()
    def check_positions(self) -> None:
        self.world.hub.position_check.begin_round()

    @rule(memory=st.booleans())
    def memory(self, memory: bool) -> None:
        self.store.in_memory = memory

    @invariant()
    def bookkeeping(self) -> None:
        live = 0
        for member in self.members:
            open_seats = {
                seat.subscription
                for seats in member.seats.values()
                for seat in seats
                if not seat.ended
            }
            live += len(open_seats)
            assert member.behind.keys() <= open_seats, "kept after its end"
        assert self.world.subscriptions == live

    @rule()
    def settle(self) -> None:
        """Let everything arrive; a member says that it drained only if it wrote."""
        while True:
            if self.store.untold:
                self.store.tell()
            elif self.store.reads:
                self.store.reads[0].finish()
            else:
                busy = [member for member in self.members if not member.idle]
                if not busy:
                    break
                for member in busy:
                    member.drain()
        for member in self.members:
            assert not member.behind, "nobody will ever advance it"
            for channel in (A, B):
                seat = self.current(member, channel)
                if seat is None:
                    continue
                assert isinstance(seat.outcome, Joined)
                stream = self.store.stream(channel)
                assert seat.outcome.top is not None
                assert seat.outcome.top.epoch == stream.epoch
                assert seat.expected == stream.top + 1

    def teardown(self) -> None:
        self.settle()


class DisorderlyFeed(Feed):
    """A feed as of a broker between nodes: late, doubled, reordered."""

    @precondition(lambda self: self.store.told)
    @rule(first=st.integers(0, 20), count=st.integers(1, 3))
    def tell_again(self, first: int, count: int) -> None:
        first %= len(self.store.told)
        self.world.hub.committed(self.store.told[first : first + count])

    @precondition(lambda self: self.store.untold)
    @rule(random=st.randoms(use_true_random=False))
    def tell_in_another_order(self, random: Random) -> None:
        random.shuffle(self.store.untold)


class RestartingFeed(Feed):
    """Streams also restart under a new epoch; those who are told come back."""

    @rule(channel=CHANNELS)
    def restart(self, channel: Any) -> None:
        self.store.restart(channel)
        self.store.commit(channel, "10")


@pytest.mark.parametrize("feed", [Feed, DisorderlyFeed, RestartingFeed])
def test_each_member_gets_each_offset_once_or_is_told(feed: type[Feed]) -> None:
    run_state_machine_as_test(
        feed,
        settings=settings(
            max_examples=200,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def walk(feed: type[Feed], seed: int) -> None:
    """Take thirty steps at random: many short runs find what few long ones miss."""
    random = Random(seed)
    machine = feed()
    channel = [A, A, A, B]
    steps: list[Any] = [
        lambda: machine.commit(random.choice(channel), random.randint(1, 4)),
        lambda: machine.publish(random.choice(channel), random.randint(1, 3)),
        lambda: machine.tell(random.randint(1, 5)),
        lambda: machine.join(
            random.randint(0, 1),
            random.choice(channel),
            random.choice([None, random.randint(-1, 8)]),
            random.choice(["", "same", "same", "other"]),
        ),
        lambda: machine.leave(random.randint(0, 1), random.choice(channel)),
        lambda: machine.drain(random.randint(0, 1)),
        lambda: machine.fill(random.randint(0, 1)),
        lambda: (
            machine.store.reads
            and machine.finish_read(random.randint(0, 7), random.random() < 0.3)
        ),
        lambda: (
            machine.store.reads
            and random.random() < 0.1
            and machine.fail_read(random.randint(0, 7))
        ),
        lambda: (
            random.random() < 0.3
            and machine.trim(random.choice(channel), random.randint(0, 3))
        ),
        lambda: random.random() < 0.2 and machine.memory(random.random() < 0.3),
        lambda: random.random() < 0.3 and machine.check_positions(),
    ]
    if isinstance(machine, DisorderlyFeed):
        steps += [
            lambda: (
                machine.store.told
                and machine.tell_again(random.randint(0, 20), random.randint(1, 3))
            ),
            lambda: random.shuffle(machine.store.untold),
        ]
    if isinstance(machine, RestartingFeed):
        steps.append(
            lambda: random.random() < 0.3 and machine.restart(random.choice(channel))
        )
    for _ in range(30):
        random.choice(steps)()
        machine.bookkeeping()
    machine.settle()


@pytest.mark.parametrize("feed", [Feed, DisorderlyFeed, RestartingFeed])
def test_many_short_walks(feed: type[Feed]) -> None:
    for seed in range(4000):
        try:
            walk(feed, seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error

"""What other processes commit: hints lost, doubled, reordered, late, and false.

Whatever a hint says, a subscriber is handed each offset once and in order, and is never
ended for it (I10). Every test ends with all that the store has, delivered.
"""

from __future__ import annotations

import random

import pytest

from service.core.model import Channel, Joined, Position
from service.core.ports import Committed
from tests.world.script import NOT_KEPT, A, ScriptedMember, Seat, committed
from tests.world.scripted import ScriptedWorld


class Bench:
    """A hub with one subscriber, and a stream that another process writes."""

    def __init__(self) -> None:
        self.world = ScriptedWorld()
        self.hub = self.world.hub
        self.store = self.world.store
        self.stream = self.store.stream(A)

    def joined(self) -> tuple[ScriptedMember, Seat]:
        member = self.world.member()
        seat = member.join(A)
        self.read_all(member)
        assert isinstance(seat.outcome, Joined)
        return member, seat

    def commit(self, count: int = 1) -> None:
        """Let the other process commit; nobody is told."""
        self.store.commit(A, *["1"] * count)
        self.store.untold.clear()

    def tell(self, *offsets: int) -> None:
        self.hub.told([committed(self.store.stream(A), n) for n in offsets])

    def read_all(self, *members: ScriptedMember) -> int:
        """Finish all reads; return how many there were."""
        count = 0
        while True:
            for member in members:
                member.drain()
            if not self.store.reads:
                return count
            count += 1
            assert count < 100, "it reads for ever"
            self.store.reads[0].look()
            self.store.reads[0].finish()


def test_a_hint_that_is_next_is_written_at_once() -> None:
    bench = Bench()
    _, seat = bench.joined()
    bench.commit(2)
    bench.tell(1)
    bench.tell(2)
    assert seat.offsets == [1, 2]
    assert bench.store.reads == []


@pytest.mark.parametrize("offsets", [(3,), (1, 3), (2, 3, 1), (1, 1, 2, 2, 3, 3)])
def test_lost_doubled_and_reordered(offsets: tuple[int, ...]) -> None:
    bench = Bench()
    member, seat = bench.joined()
    bench.commit(3)
    for offset in offsets:
        bench.tell(offset)
    bench.read_all(member)
    assert seat.offsets == [1, 2, 3]
    bench.commit()
    bench.tell(4)  # it is live
    assert seat.offsets == [1, 2, 3, 4]


def test_of_an_epoch_that_is_over() -> None:
    bench = Bench()
    old = bench.stream
    bench.commit(5)
    bench.store.restart(A)
    member, seat = bench.joined()
    bench.commit(2)
    bench.tell(1)
    bench.hub.told([committed(old, 2)])  # next by its number, and of another stream
    bench.hub.moved(A, Position(5, old.epoch))
    bench.read_all(member)
    assert seat.offsets == [1, 2]
    bench.commit()
    bench.tell(3)
    assert seat.offsets == [1, 2, 3]


def test_of_an_epoch_that_is_over_while_nobody_has_joined_yet() -> None:
    bench = Bench()
    old = bench.stream
    bench.commit(5)
    bench.store.restart(A)
    member = bench.world.member()
    seat = member.join(A)
    bench.hub.told([committed(old, 5)])
    bench.read_all(member)
    bench.commit()
    bench.tell(1)
    bench.read_all(member)
    assert seat.offsets == [1]


def test_a_position_that_does_not_exist() -> None:
    bench = Bench()
    member, seat = bench.joined()
    bench.hub.moved(A, Position(1000, bench.stream.epoch))
    assert bench.read_all(member) == 1
    bench.commit()
    bench.tell(1)
    assert seat.offsets == [1]
    bench.hub.moved(A, Position(7, "another"))
    assert bench.read_all(member) == 1
    bench.commit()
    bench.tell(2)
    assert seat.offsets == [1, 2]


def test_a_position_brings_what_is_missing() -> None:
    bench = Bench()
    members = [bench.joined() for _ in range(3)]
    bench.commit(2)
    bench.hub.moved(A, bench.stream.position)
    bench.read_all(*[member for member, _ in members])
    assert [seat.offsets for _, seat in members] == [[1, 2]] * 3
    bench.hub.moved(A, bench.stream.position)
    assert bench.store.reads == []


@pytest.mark.parametrize("whole", [True, False])
def test_a_publication_between_the_first_follow_and_the_first_read(
    whole: bool,
) -> None:
    """Its hint was lost: the read of the head after the confirmation finds it."""
    bench = Bench()
    member = bench.world.member()
    seat = member.join(A)
    assert bench.store.followed == {A}
    # The read has looked, and has no answer yet.
    bench.commit()
    if whole:
        bench.tell(1)
    else:
        bench.hub.moved(A, bench.stream.position)
    bench.store.reads[0].finish()
    assert isinstance(seat.outcome, Joined)
    bench.read_all(member)
    assert seat.offsets == [1]
    bench.commit()
    bench.tell(2)
    assert seat.offsets == [1, 2]


def test_a_hint_during_a_read_that_did_not_see_it() -> None:
    bench = Bench()
    member, seat = bench.joined()
    bench.commit(2)
    bench.tell(2)  # one was lost
    bench.store.reads[0].look()
    bench.commit()
    bench.tell(3)
    bench.store.reads[0].finish()
    bench.read_all(member)
    assert seat.offsets == [1, 2, 3]


def test_a_channel_that_nobody_is_in() -> None:
    bench = Bench()
    bench.commit()
    bench.tell(1)
    bench.hub.moved(Channel("elsewhere"), Position(1, "e"))
    assert bench.store.reads == []


def test_what_is_not_stored_is_handed_over() -> None:
    world = ScriptedWorld()
    seat = world.member().join(A, history=NOT_KEPT)
    world.store.commit(A, "7", skip_history=True)
    batch, world.store.untold = world.store.untold, []
    world.hub.told(batch)
    assert seat.loose == 1


def test_a_channel_is_followed_from_its_first_subscriber_to_its_last() -> None:
    bench = Bench()
    members = [bench.joined() for _ in range(2)]
    assert bench.store.followed == {A}
    for member, seat in members:
        member.leave(seat)
    assert bench.store.followed == set()
    bench.joined()
    assert bench.store.followed == {A}


@pytest.mark.parametrize("seed", range(200))
def test_any_order_of_hints_commits_and_reads(seed: int) -> None:
    """Own commits are mixed with those of others; each is told of, sooner or later."""
    rng = random.Random(seed)
    print("seed", seed)
    bench = Bench()
    members = [bench.joined() for _ in range(2)]
    hints: list[Committed] = []
    for _ in range(60):
        act = rng.random()
        if act < 0.25:
            bench.commit()
            hints.append(committed(bench.stream, bench.stream.top))
        elif act < 0.35:
            bench.store.publish(A)
        elif act < 0.65 and hints:
            hint = rng.choice(hints)
            if rng.random() < 0.5:
                hints.remove(hint)
            if rng.random() < 0.7:
                bench.hub.told([hint])
            else:
                position = Position(hint.publication.offset, hint.epoch)
                bench.hub.moved(A, position)
        elif act < 0.75 and bench.store.reads:
            rng.choice(bench.store.reads).look()
        elif act < 0.95 and bench.store.reads:
            rng.choice(bench.store.reads).finish()
        else:
            rng.choice(members)[0].drain()
        if rng.random() < 0.03:
            member = bench.world.member()
            members.append((member, member.join(A)))
    bench.hub.moved(A, bench.stream.position)
    bench.read_all(*[member for member, _ in members])
    for _, seat in members:
        start = seat.outcome.top.offset
        assert seat.offsets == list(range(start + 1, bench.stream.top + 1))

"""The orders of events that the hub's docstring names, each played by hand."""

from __future__ import annotations

import pytest

from service.core.errors import StoreUnavailable
from service.core.model import Joined, Position
from tests.world.script import A, committed
from tests.world.scripted import ScriptedWorld


@pytest.mark.requirement("R45")
def test_a_commit_between_a_join_s_read_and_its_arrival() -> None:
    # I3. The page says top 2; the listener was told of 3 meanwhile.
    world = ScriptedWorld()
    world.store.publish(A, 2)
    member = world.member()
    seat = member.join(A)
    world.store.publish(A)
    world.store.reads[0].finish()
    assert isinstance(seat.outcome, Joined)
    assert seat.outcome.top is not None
    assert seat.outcome.top.offset == 2
    assert seat.offsets == []
    member.drain()
    world.store.reads[0].finish()
    assert seat.offsets == [3]
    world.store.publish(A)
    assert seat.offsets == [3, 4]


def test_a_commit_that_the_read_saw_and_the_listener_tells_later() -> None:
    world = ScriptedWorld()
    world.store.publish(A, 2)
    member = world.member()
    seat = member.join(A, Position(1, ""))
    world.store.commit(A, "1")
    world.store.reads[0].look()
    world.store.reads[0].finish()
    assert seat.offsets == [2, 3]
    world.store.tell()
    world.store.publish(A)
    assert seat.offsets == [2, 3, 4]


def test_a_commit_between_a_piece_s_read_and_its_arrival() -> None:
    world = ScriptedWorld(recovery_size=2)
    world.store.publish(A, 4)
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    member.drain()
    world.store.publish(A)
    world.store.reads[0].finish()
    assert seat.offsets == [1, 2, 3, 4]
    member.drain()
    world.store.reads[0].finish()
    assert seat.offsets == [1, 2, 3, 4, 5]


def test_a_late_commit_does_not_make_the_hub_forget_a_newer_one() -> None:
    # I3 again: while a join reads, 3 is told of, then 1 comes once more. Were 1
    # taken for the newest, the subscription would go live without 3.
    world = ScriptedWorld()
    world.store.publish(A, 2)
    member = world.member()
    seat = member.join(A)
    world.store.publish(A)
    world.told(committed(world.store.stream(A), 1))
    world.store.reads[0].finish()
    member.drain()
    for read in tuple(world.store.reads):
        read.finish()
    assert seat.offsets == [3]


def test_leave_during_the_read_of_a_join() -> None:
    world = ScriptedWorld()
    member = world.member()
    seat = member.join(A)
    member.leave(seat)
    assert world.channels == 0
    world.store.reads[0].finish()
    assert seat.outcome is None
    assert member.waiting == []
    world.store.publish(A)
    assert member.waiting == []


def test_leave_during_the_read_of_a_join_that_fails() -> None:
    world = ScriptedWorld()
    member = world.member()
    seat = member.join(A)
    member.leave(seat)
    world.store.reads[0].finish(StoreUnavailable("locked"))
    assert seat.outcome is None


def test_leave_during_the_read_of_a_piece() -> None:
    world = ScriptedWorld(recovery_size=1)
    world.store.publish(A, 3)
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    member.drain()
    member.leave(seat)
    world.store.reads[0].finish()
    assert seat.offsets == [1]
    assert member.losses == []
    assert member.behind == {}


def test_leave_during_a_read_that_fails_is_no_loss() -> None:
    world = ScriptedWorld(recovery_size=1)
    world.store.publish(A, 3)
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    member.drain()
    member.leave(seat)
    world.store.reads[0].finish(StoreUnavailable("locked"))
    assert member.losses == []


def test_leave_and_join_again_during_a_read() -> None:
    # The old read belongs to the old object, whichever arrives first.
    for order in ((0, 1), (1, 0)):
        world = ScriptedWorld()
        world.store.publish(A, 3)
        member = world.member()
        old = member.join(A, Position(0, ""))
        member.leave(old)
        new = member.join(A, Position(2, ""))
        reads = tuple(world.store.reads)
        for index in order:
            reads[index].finish()
        assert old.outcome is None
        assert new.offsets == [3]
        world.store.publish(A)
        assert new.offsets == [3, 4]
        assert world.subscriptions == 1


@pytest.mark.requirement("R45")
def test_the_last_member_leaves_and_another_comes_while_the_first_one_reads() -> None:
    world = ScriptedWorld()
    first = world.member()
    gone = first.join(A)
    first.leave(gone)
    second, seat = world.live()
    world.store.reads[0].finish()
    assert world.channels == 1
    world.store.publish(A)
    assert second.offsets() == [1]
    second.leave(seat)
    assert world.channels == 0


def test_leaving_twice_does_not_take_the_channel_from_those_who_came_since() -> None:
    world = ScriptedWorld()
    one, first = world.live()
    one.leave(first)
    two, _ = world.live()
    one.leave(first)
    world.store.publish(A)
    assert two.offsets() == [1]


def test_the_history_is_trimmed_while_it_is_read() -> None:
    # A page that still holds what was asked for is good, however old it is.
    world = ScriptedWorld()
    world.store.publish(A, 4)
    member = world.member()
    seat = member.join(A, Position(1, ""))
    world.store.trim(A, 1)
    world.store.reads[0].finish()
    assert seat.offsets == [2, 3, 4]


def test_the_history_is_trimmed_before_it_is_read() -> None:
    world = ScriptedWorld()
    world.store.publish(A, 4)
    member = world.member()
    seat = member.join(A, Position(1, ""))
    world.store.trim(A, 1)
    world.store.reads[0].look()
    world.store.reads[0].finish()
    assert isinstance(seat.outcome, Joined)
    assert seat.outcome.recovered is None
    world.store.publish(A)
    assert seat.offsets == [5]


def test_the_stream_restarts_between_a_join_s_read_and_its_arrival() -> None:
    # The page is of the old epoch, the listener was told of the new one: whether the
    # member is told now or at the next commit, it must not stay without being told.
    world = ScriptedWorld()
    world.store.publish(A, 2)
    member = world.member()
    seat = member.join(A)
    world.store.restart(A)
    world.store.publish(A)
    world.store.reads[0].finish()
    member.drain()
    for read in tuple(world.store.reads):
        read.finish()
    assert seat.lost or seat.offsets == [1]


def test_the_stream_restarts_between_a_piece_s_read_and_its_arrival() -> None:
    world = ScriptedWorld(recovery_size=2)
    world.store.publish(A, 4)
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    member.drain()
    world.store.restart(A)
    world.store.publish(A)
    world.store.reads[0].finish()
    member.drain()
    for read in tuple(world.store.reads):
        read.finish()
    assert seat.lost
    assert seat.offsets in ([1, 2], [1, 2, 3, 4])


def test_a_join_after_a_restart_that_the_listener_does_not_know_of_yet() -> None:
    world = ScriptedWorld()
    world.live()  # keeps the channel known under its old epoch
    world.store.publish(A, 5)
    world.store.restart(A)
    world.store.commit(A, "1")
    _, seat = world.live()
    world.store.tell()
    world.store.publish(A)
    for read in tuple(world.store.reads):
        read.finish()
    assert seat.offsets == [2]
    assert not seat.lost


def test_the_connection_drains_while_a_read_is_under_way() -> None:
    # I5: one read, however often the member says that it has room.
    world = ScriptedWorld(recovery_size=1)
    world.store.publish(A, 3)
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    for _ in range(3):
        member.drain()
        assert len(world.store.reads) == 1
    world.store.reads[0].finish()
    assert seat.offsets == [1, 2]


def test_a_member_that_is_busy_again_when_the_read_arrives_gets_nothing_more() -> None:
    # Else each of a hundred channels that are behind hands over a piece at once, and
    # what was to save the outbox from overflowing overflows it.
    world = ScriptedWorld(recovery_size=1)
    world.store.publish(A, 3)
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    member.drain()
    member.waiting.append("the piece of another channel")
    world.store.reads[0].finish()
    assert seat.offsets == [1]
    while member.behind:
        member.drain()
        for read in tuple(world.store.reads):
            read.finish()
    assert seat.offsets == [1, 2, 3]


def test_a_gap_while_a_piece_is_read() -> None:
    world = ScriptedWorld(recovery_size=2)
    world.store.publish(A, 4)
    member = world.member()
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    member.drain()
    world.store.commit(A, "1", "1")
    world.store.untold.pop(0)
    world.store.tell()
    world.store.reads[0].finish()
    while member.behind:
        member.drain()
        for read in tuple(world.store.reads):
            read.finish()
    assert seat.offsets == [1, 2, 3, 4, 5, 6]


def test_a_loss_while_the_member_joins_again_at_once() -> None:
    # As a client does on 2500: it comes back from inside the loss.
    world = ScriptedWorld()
    member, seat = world.live()
    world.store.commit(A, *["1"] * 3)
    del world.store.untold[:2]
    world.store.trim(A, 1)
    world.store.tell()
    world.store.reads[0].finish()
    assert seat.lost
    again = member.join(A, Position(0, world.store.stream(A).epoch))
    world.store.reads[0].finish()
    assert isinstance(again.outcome, Joined)
    assert again.outcome.recovered is None
    world.store.publish(A)
    assert again.offsets == [4]

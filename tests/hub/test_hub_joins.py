"""Joins that are held, refused or not positioned; checks of positions; who is told."""

from __future__ import annotations

import pytest

from service.core.errors import StoreUnavailable
from service.core.model import Channel, Joined, Position
from tests.world.script import NOT_KEPT, A, B
from tests.world.scripted import ScriptedWorld


def test_nothing_is_written_to_a_held_join_until_it_is_released() -> None:
    world = ScriptedWorld()
    member = world.member()
    seat = member.join(
        A, held=True, sends_join_leave=True, receives_join_leave=True, present=True
    )
    world.store.reads[0].finish()
    assert isinstance(seat.outcome, Joined)
    world.store.publish(A, 3)
    assert member.waiting == ["reply"]
    assert world.hub.present(A) == []
    assert seat.subscription is not None
    world.hub.activate(seat.subscription)
    assert seat.heard == [("join", "client1")]
    member.drain()
    world.store.reads[0].finish()
    assert seat.offsets == [1, 2, 3]
    assert len(world.hub.present(A)) == 1


def test_a_held_join_without_history() -> None:
    world = ScriptedWorld()
    member = world.member()
    seat = member.join(A, history=NOT_KEPT, held=True)
    world.store.commit(A, "1", skip_history=True)
    world.store.tell()
    assert seat.loose == 0
    assert seat.subscription is not None
    world.hub.activate(seat.subscription)
    world.store.commit(A, "2", skip_history=True)
    world.store.tell()
    assert seat.loose == 1


def test_releasing_what_was_left_does_nothing() -> None:
    world = ScriptedWorld()
    member = world.member()
    other = world.member()
    ears = other.join(A, history=NOT_KEPT, receives_join_leave=True)
    seat = member.join(A, history=NOT_KEPT, held=True, sends_join_leave=True)
    member.leave(seat)
    assert seat.subscription is not None
    world.hub.activate(seat.subscription)
    assert ears.heard == []  # neither came nor went
    assert world.subscriptions == 1


@pytest.mark.parametrize("history", [True, False])
def test_a_join_that_is_not_wanted_after_all(history: bool) -> None:
    world = ScriptedWorld(in_memory=True)
    other = world.member()
    ears = other.join(A, receives_join_leave=True)
    member = world.member()
    options = {"sends_join_leave": True, "present": True}
    if history:
        seat = member.join(A, accept=False, **options)
    else:
        seat = member.join(A, None, NOT_KEPT, accept=False, **options)
    assert seat.subscription is not None
    assert seat.subscription.left
    assert ears.heard == []
    assert world.hub.present(A) == []
    world.store.publish(A)
    assert member.waiting == ["reply"]


def test_a_gap_is_skipped_where_positions_are_not_checked() -> None:
    world = ScriptedWorld()
    member = world.member()
    seat = member.join(A, positioned=False)
    world.store.reads[0].finish()
    member.drain()
    world.store.commit(A, *["1"] * 5)
    del world.store.untold[:4]
    world.store.trim(A, 0)
    world.store.tell()
    world.store.reads[0].finish()
    assert not seat.lost
    seat.expected = 6  # 1 to 5 are gone for good
    world.store.publish(A)
    assert seat.offsets == [6]


def test_a_restart_is_gone_along_with_where_positions_are_not_checked() -> None:
    world = ScriptedWorld()
    member = world.member()
    seat = member.join(A, positioned=False)
    world.store.reads[0].finish()
    world.store.publish(A, 2)
    member.drain()
    world.store.restart(A)
    seat.expected = 1
    world.store.publish(A)
    while world.store.reads:
        world.store.reads[0].finish()
    assert not seat.lost
    seat.expected = 2
    world.store.publish(A)
    assert seat.offsets == [1, 2, 2]


# The check of positions.


def check(world: ScriptedWorld) -> None:
    world.hub.position_check.begin_round()
    while world.store.reads:
        world.store.reads[0].finish()


def test_a_last_publication_that_was_never_told_of_is_found() -> None:
    world = ScriptedWorld()
    member, seat = world.live()
    other, _ = world.live(B)
    world.store.publish(A, 2)
    member.drain()
    world.store.commit(A, "1")
    world.store.untold.clear()
    check(world)
    assert seat.offsets == [1, 2, 3]
    assert other.waiting == []
    member.drain()
    check(world)
    assert seat.offsets == [1, 2, 3]


def test_a_restart_that_was_never_told_of_is_found() -> None:
    world = ScriptedWorld()
    member, seat = world.live()
    world.store.publish(A, 2)
    member.drain()
    world.store.restart(A)
    check(world)
    assert seat.lost


def test_a_check_that_cannot_read_harms_nobody() -> None:
    world = ScriptedWorld()
    _, seat = world.live()
    world.hub.position_check.begin_round()
    world.store.reads[0].finish(StoreUnavailable("locked"))
    assert not seat.lost
    world.store.publish(A)
    assert seat.offsets == [1]


def test_a_check_costs_one_read_a_channel_and_none_without_history() -> None:
    world = ScriptedWorld()
    for _ in range(3):
        world.live(A)
    world.live(B)
    world.member().join(Channel("loud"), history=NOT_KEPT)
    world.hub.position_check.begin_round()
    assert sorted(read.channel for read in world.store.reads) == ["a", "b"]
    assert all(read.limit == 0 for read in world.store.reads)


def test_a_check_whose_members_leave_meanwhile() -> None:
    world = ScriptedWorld()
    member, seat = world.live()
    world.store.commit(A, "1")
    world.store.untold.clear()
    world.hub.position_check.begin_round()
    member.leave(seat)
    world.store.reads[0].finish()
    assert member.waiting == []
    assert (world.channels, world.store.reads) == (0, [])


def test_a_publication_told_of_while_a_check_reads_is_written_once() -> None:
    world = ScriptedWorld()
    member, seat = world.live()
    world.store.commit(A, "1")
    world.hub.position_check.begin_round()
    world.store.tell()
    world.store.reads[0].finish()
    member.drain()
    assert seat.offsets == [1]
    assert world.store.reads == []


# Join and leave pushes.


def test_only_those_who_listen_are_told_and_only_of_those_who_are_announced() -> None:
    world = ScriptedWorld(in_memory=True)
    hears, deaf = world.member(), world.member()
    ears = hears.join(A, receives_join_leave=True)
    none = deaf.join(A)
    loud, quiet = world.member(), world.member()
    one = loud.join(A, sends_join_leave=True)
    two = quiet.join(A)
    world.announce()
    loud.leave(one)
    loud.leave(one)
    quiet.leave(two)
    world.announce()
    assert ears.heard == [("join", "client3"), ("leave", "client3")]
    assert none.heard == []


def test_someone_who_leaves_while_a_join_is_told_of_hears_nothing_more() -> None:
    # I4 also for joins and leaves: whoever is told first makes the other leave.
    world = ScriptedWorld(in_memory=True)
    one, two = world.member(), world.member()
    first, second = (
        one.join(A, receives_join_leave=True),
        two.join(A, receives_join_leave=True),
    )
    one.on_put = lambda _: two.leave(second)
    two.on_put = lambda _: one.leave(first)
    world.member().join(A, sends_join_leave=True)
    assert first.ended != second.ended


def test_where_the_members_of_a_channel_are_counted() -> None:
    world = ScriptedWorld(in_memory=True)
    one, two = world.member(), world.member()
    seat = one.join(A)
    two.join(A)
    two.join(B)
    assert world.hub.counts() == {"a": 2, "b": 1}
    one.leave(seat)
    assert world.hub.counts() == {"a": 1, "b": 1}


def test_a_recovery_that_has_no_room_in_the_reply_follows_as_pushes() -> None:
    world = ScriptedWorld()
    world.store.publish(A, 3)
    member = world.member()
    member.waiting.append("x" * world.settings.client.recovery_size)
    seat = member.join(A, Position(0, ""))
    world.store.reads[0].finish()
    assert isinstance(seat.outcome, Joined)
    assert seat.outcome.recovered == []
    assert seat.offsets == []
    member.drain()
    world.store.reads[0].finish()
    assert seat.offsets == [1, 2, 3]


def test_those_behind_are_served_in_turn() -> None:
    world = ScriptedWorld(in_memory=True)
    member = world.member()
    for channel in (A, B):
        world.store.commit(channel, *["1"] * 200)
        world.store.untold.clear()
    seats = [member.join(channel, Position(0, "")) for channel in (A, B)]
    sizes = []
    while member.behind:
        member.drain()
        sizes.append([len(seat.offsets) for seat in seats])
    assert sizes[-1] == [200, 200]
    for ours, theirs in sizes:
        assert abs(ours - theirs) <= 64

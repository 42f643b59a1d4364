"""What the hub keeps of channels, and who is told of nothing."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from service.core.errors import StoreBusy
from service.core.model import Channel, Position
from service.hub.subscription import Topic
from tests.world.script import KEPT, NOT_KEPT, A, ScriptedMember
from tests.world.scripted import ScriptedWorld

CHANNELS = [Channel(f"ch{number}") for number in range(50)]


def topics() -> int:
    gc.collect()
    return sum(type(each) is Topic for each in gc.get_objects())


def leave(world: ScriptedWorld, member: ScriptedMember, channel: Channel) -> None:
    member.leave(member.join(channel, history=NOT_KEPT))


def lose(world: ScriptedWorld, member: ScriptedMember, channel: Channel) -> None:
    subscription = member.join(channel, history=NOT_KEPT, present=True).subscription
    assert world.hub.begin_grace(subscription)
    assert len(world.hub.present(channel)) == 1
    world.hub.end_grace(subscription)


def fail(world: ScriptedWorld, member: ScriptedMember, channel: Channel) -> None:
    member.join(channel, history=KEPT)
    world.store.reads[-1].finish(StoreBusy("1024 calls wait"))


@pytest.mark.parametrize("end", [leave, lose, fail])
def test_nothing_is_kept_of_a_channel_that_nobody_is_in(
    end: Callable[[ScriptedWorld, ScriptedMember, Channel], None],
) -> None:
    world, before = ScriptedWorld(), topics()
    member = world.member()
    member.user = "ann"
    for channel in CHANNELS:
        end(world, member, channel)
    member.seats.clear()  # the hub's are gone already
    assert world.hub.counts() == {}
    assert topics() - before < len(CHANNELS) // 2  # some wait to be announced


def test_a_channel_is_kept_while_one_of_two_is_in_it() -> None:
    world = ScriptedWorld()
    one, two = world.member(), world.member()
    first, second = one.join(A, history=NOT_KEPT), two.join(A, history=NOT_KEPT)
    one.leave(first)
    assert world.hub.counts() == {A: 1}
    world.store.commit(A, "1", skip_history=True)
    world.store.tell()
    assert (first.loose, second.loose) == (0, 1)


@pytest.mark.parametrize(
    ("user", "shows", "kept"),
    [
        ("ann", {"present": True}, True),
        ("ann", {"sends_join_leave": True}, True),
        ("ann", {}, False),
        ("", {"present": True}, False),
    ],
)
def test_a_lost_subscription_is_kept_if_anybody_could_have_seen_it(
    user: str, shows: dict[str, bool], kept: bool
) -> None:
    world = ScriptedWorld()
    member = world.member()
    member.user = user
    seat = member.join(A, history=NOT_KEPT, **shows)
    assert world.hub.begin_grace(seat.subscription) is kept
    assert world.hub.counts() == {}
    assert len(world.hub.present(A)) == (1 if kept and "present" in shows else 0)
    # It is out already: there is nothing more to keep.
    assert world.hub.begin_grace(seat.subscription) is False


def test_one_that_is_not_in_yet_leaves_at_once_and_is_told_nothing() -> None:
    world = ScriptedWorld()
    member = world.member()
    member.user = "ann"
    seat = member.join(A, present=True)
    assert world.hub.begin_grace(seat.subscription) is False
    assert world.hub.counts() == {}
    world.store.reads[-1].finish()
    assert seat.outcome is None


def test_one_that_is_not_in_yet_does_not_hide_a_publication_from_others() -> None:
    world = ScriptedWorld()
    seats = [
        world.member().join(A, history=NOT_KEPT, held=number % 2 == 1)
        for number in range(8)
    ]
    world.store.commit(A, "1", skip_history=True)
    world.store.tell()
    assert [seat.loose for seat in seats] == [1, 0] * 4


def test_what_is_in_the_reply_of_a_recovery_takes_space() -> None:
    world = ScriptedWorld(in_memory=True, recovery_size=10)
    world.store.commit(A, *["12345"] * 3)
    world.store.tell()
    member = world.member()
    seat = member.join(A, Position(0, world.store.stream(A).epoch))
    assert seat.offsets == [1, 2]  # as many bytes as fit exactly
    assert member.given == 10


def test_a_join_asks_for_the_top_alone() -> None:
    world = ScriptedWorld()
    world.member().join(A)
    [read] = world.store.reads
    assert (read.since, read.limit) == (0, 0)

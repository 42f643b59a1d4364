"""What a full outbox may drop: pushes without an offset, but no link of deltas."""

from __future__ import annotations

import pytest

from service.core.priority import Priority, priority_of
from tests.world.script import NOT_KEPT, A, ScriptedMember
from tests.world.scripted import ScriptedWorld


def priorities(member: ScriptedMember) -> list[Priority | None]:
    reply, *pushes = member.waiting
    assert priority_of(reply) is None
    return [priority_of(text) for text in pushes]


@pytest.mark.requirement("L7", "B64")
def test_each_kind_of_push_has_its_priority() -> None:
    world = ScriptedWorld(in_memory=True)
    member = world.member()
    member.join(A, receives_join_leave=True)
    world.store.commit(A, '"kept"')
    world.store.commit(A, '"fleeting"', skip_history=True)
    world.store.tell()
    other = world.member()
    seat = other.join(A, sends_join_leave=True)
    world.clock.advance(1.0)
    other.leave(seat)
    assert priorities(member) == [
        None,
        Priority.PUBLICATION,
        Priority.JOIN_LEAVE,
        Priority.JOIN_LEAVE,
    ]


@pytest.mark.requirement("L7")
def test_what_the_next_delta_is_made_from_must_not_be_dropped() -> None:
    world = ScriptedWorld(in_memory=True)
    taker, plain = world.member(), world.member()
    taker.join(A, history=NOT_KEPT, delta=True)
    plain.join(A, history=NOT_KEPT)
    world.store.commit(A, '"one"', '"two"', skip_history=True, delta=True)
    world.store.tell()
    assert priorities(taker) == [None, None]
    assert priorities(plain) == [Priority.PUBLICATION] * 2


# Overload: what is pushed to nobody.


@pytest.mark.requirement("L20", "B53")
@pytest.mark.parametrize(("level", "heard"), [(1, 3), (2, 2), (3, 1)])
def test_what_is_shed_is_pushed_to_nobody_and_offsets_are_to_all(
    level: int, heard: int
) -> None:
    world = ScriptedWorld(in_memory=True)
    member, other = world.member(), world.member()
    member.join(A, receives_join_leave=True)
    world.shedding.observe(0.0, {"memory": level})
    world.store.commit(A, '"kept"')
    world.store.commit(A, '"fleeting"', skip_history=True)
    world.store.tell()
    other.join(A, sends_join_leave=True)
    expected = [None, Priority.PUBLICATION, Priority.JOIN_LEAVE]
    assert priorities(member) == expected[:heard]
    assert world.shedding.publications == (level == 3)


@pytest.mark.requirement("L20")
def test_a_delta_after_what_was_shed_is_made_from_what_the_client_has() -> None:
    world = ScriptedWorld(in_memory=True)
    taker = world.member()
    seat = taker.join(A, history=NOT_KEPT, delta=True)
    long = '"a text of some length, of which only the end is new: %d"'
    for number, level in ((1, 0), (2, 3), (3, 0)):
        world.shedding.observe(100.0 * number, {"memory": level})
        world.store.commit(A, long % number, skip_history=True, delta=True)
        world.store.tell()
    taker.drain()
    # `Seat` applies each delta to what it got before.
    assert [payload for _, payload, _ in seat.payloads] == [long % 1, long % 3]
    assert [delta for *_, delta in seat.payloads] == [False, True]

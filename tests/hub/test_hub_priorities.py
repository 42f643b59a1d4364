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

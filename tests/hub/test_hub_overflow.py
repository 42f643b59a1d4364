"""Members that are ended by what they are told, and whose leaves end others (A5)."""

from __future__ import annotations

import pytest

from tests.world.script import A, ScriptedMember, Seat
from tests.world.scripted import ScriptedWorld

MANY = 3000  # members; the stack of Python is 1,000 deep


class Crowd:
    """Members of one channel that leave it when they are given one message more.

    Attributes:
        ended: Their names, in the order in which they left.
    """

    def __init__(self, world: ScriptedWorld, count: int) -> None:
        self.ended: list[str] = []
        members = [world.member() for _ in range(count)]
        seats = [member.join(A, sends_join_leave=True) for member in members]
        world.clock.advance(60.0)  # the witness is told of all
        for member, seat in zip(members, seats, strict=True):
            seat.subscription.subscriber.receives_join_leave = True
            world.hub.announcements.listen(seat.subscription)
            member.on_put = lambda text, one=member, its=seat: self._end(one, its)  # type: ignore[misc]
        self.members = members

    def _end(self, member: ScriptedMember, seat: Seat) -> None:
        assert len(member.waiting) == 2  # its reply, and the message it ends of
        self.ended.append(member.name)
        member.leave(seat)


@pytest.mark.parametrize(
    ("event", "left_over"), [("publication", 2), ("join", 3), ("leave", 1)]
)
def test_thousands_at_the_brink_end_each_other(event: str, left_over: int) -> None:
    world = ScriptedWorld(in_memory=True)
    witness = world.member()
    heard = witness.join(A, receives_join_leave=True).heard
    first = world.member()
    seat = first.join(A, sends_join_leave=True)
    crowd = Crowd(world, MANY)
    heard.clear()
    if event == "publication":
        world.store.publish(A)
    elif event == "join":
        world.member().join(A, sends_join_leave=True)
    else:
        first.leave(seat)
    world.clock.advance(60.0)
    assert len(crowd.ended) == len(set(crowd.ended)) == MANY
    # Each leave is pushed once, in the order of the ends.
    left = [name for kind, name in heard if kind == "leave"]
    assert left == [first.name] * (event == "leave") + crowd.ended
    assert world.subscriptions == left_over


@pytest.mark.requirement("L28")
def test_leaves_go_on_after_one_that_failed() -> None:
    # `put` never raises; should it do so, the others' leaves are not held up for good.
    world = ScriptedWorld(in_memory=True)
    one, two, three = (world.member() for _ in range(3))
    seats = [
        member.join(A, sends_join_leave=True, receives_join_leave=True)
        for member in (one, two)
    ]
    watched = three.join(A, receives_join_leave=True)
    world.clock.advance(1.0)

    def fails(text: str) -> None:
        raise RuntimeError("a bug")

    two.on_put = fails
    three.on_put = fails
    with pytest.raises(RuntimeError):
        one.leave(seats[0])
    two.on_put = three.on_put = None
    world.announce()
    watched.heard.clear()
    two.leave(seats[1])
    world.announce()
    assert [name for _, name in watched.heard] == [two.name]

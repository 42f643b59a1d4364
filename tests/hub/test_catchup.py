"""Catch-up: how much is read at once, and reads that fail."""

from __future__ import annotations

import json

import pytest

from service.core.errors import StoreUnavailable
from service.core.model import Position
from service.hub.catchup import CatchUp
from tests.world.script import KEPT, A
from tests.world.scripted import ScriptedWorld


class Faulty:
    def peek(self, *args: object) -> None:
        return None

    async def read(self, *args: object, reverse: bool) -> None:
        raise ZeroDivisionError


async def test_a_read_that_fails_by_a_bug_is_told_and_raised() -> None:
    works, told = [], []
    catchup = CatchUp(Faulty(), 1000, works.append, lambda subscription: None)  # type: ignore[arg-type]
    assert catchup.read(A, KEPT, 0, 10, told.append) is None
    assert told == []  # never inside the call
    [work] = works
    with pytest.raises(ZeroDivisionError):
        await work
    [outcome] = told
    assert isinstance(outcome, StoreUnavailable)
    assert str(outcome) == "the read failed"


def test_a_slow_link_reads_twice_what_it_took_and_all_once_it_is_quick() -> None:
    world = ScriptedWorld(recovery_size=100)
    data = json.dumps("x" * 38)  # 40 bytes, of which two fit
    world.store.commit(A, *[data] * 30)
    world.store.tell()
    member = world.member()
    seat = member.join(A, Position(0, world.store.stream(A).epoch))
    limits = []
    while world.store.reads:
        limits.append(world.store.reads[0].limit)
        world.store.reads[0].finish()
        member.drain()
    assert seat.offsets == list(range(1, 31))
    # The join reads first; then two fit of four that are read, until all are there.
    assert limits == [64, 64] + [4] * 13
    assert not member.behind


@pytest.mark.parametrize("positioned", [False, True])
def test_a_stream_that_restarts_under_a_live_subscription(positioned: bool) -> None:
    world = ScriptedWorld()
    world.store.publish(A, 5)
    member = world.member()
    seat = member.join(A, positioned=positioned)
    world.store.reads[-1].finish()
    world.store.publish(A)
    assert seat.offsets == [6]
    world.store.restart(A)
    world.store.commit(A, "1", "1", "1")
    world.store.untold.clear()
    world.hub.position_check.begin_round()
    while world.store.reads:
        world.store.reads[0].finish()
        member.drain()
    assert seat.lost is positioned
    if positioned:
        return
    # One that is not positioned goes on at the new top, without what was there.
    assert seat.offsets == [6]
    seat.expected = 4
    world.store.publish(A)
    assert seat.offsets == [6, 4]

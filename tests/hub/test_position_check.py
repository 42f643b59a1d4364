"""The position check: every channel in each round, and few reads at a time."""

from __future__ import annotations

from collections import Counter

import pytest

from service.core.errors import StoreBusy
from service.core.model import Channel
from tests.world.script import KEPT, NOT_KEPT, A, B
from tests.world.scripted import ScriptedWorld

PERIOD = 40.0  # s
FEW = 16  # reads; as many threads has the client of DynamoDB


def crowded(count: int) -> ScriptedWorld:
    """Return a hub with a subscriber in each of *count* channels, and no cache."""
    world = ScriptedWorld(in_memory=True)
    for number in range(count):
        world.member().join(Channel(f"ch{number}"))
    world.store.in_memory = False
    return world


def finish_all(world: ScriptedWorld) -> Counter[str]:
    """Finish every read as it comes; return how often each channel was read."""
    found: Counter[str] = Counter()
    while world.store.reads:
        assert len(world.store.reads) <= FEW // 2
        found[world.store.reads[0].channel] += 1
        world.store.reads[0].finish()
        world.clock.advance(0)
    return found


def test_thousands_of_channels_are_all_read_and_few_at_a_time() -> None:
    world = crowded(3000)
    world.hub.position_check.start()
    for _ in range(2):
        world.clock.advance(PERIOD)
        found = finish_all(world)
        assert len(found) == 3000 and set(found.values()) == {1}
    world.hub.position_check.stop()
    assert world.clock.pending == []


def test_what_a_store_refuses_is_read_in_the_next_round() -> None:
    world = crowded(100)
    world.hub.position_check.begin_round()
    refused = set()
    while world.store.reads:
        read = world.store.reads[0]
        refused.add(read.channel)
        read.finish(StoreBusy("1024 calls wait"))
    assert len(refused) == 100
    world.hub.position_check.begin_round()
    assert finish_all(world).keys() == refused


def test_a_channel_is_caught_up_although_all_before_it_are_slow() -> None:
    world = crowded(50)
    member, seat = world.live()
    world.store.commit(A, "1")
    world.store.untold.clear()  # by another process: this hub is told of nothing
    world.hub.position_check.begin_round()
    reads = 0
    while not seat.offsets:
        reads += 1
        world.store.reads[0].finish()
        member.drain()
    assert seat.offsets == [1]
    assert reads <= 52  # one a channel, and one that fills the gap


def test_a_round_that_takes_longer_than_the_period_goes_on() -> None:
    world = crowded(20)
    world.hub.position_check.start()
    world.clock.advance(PERIOD)
    before = list(world.store.reads)
    world.clock.advance(PERIOD)
    assert world.store.reads == before  # none was begun again
    assert len(finish_all(world)) == 20
    world.clock.advance(PERIOD)
    assert len(finish_all(world)) == 20


def test_from_memory_a_portion_is_looked_at_in_a_turn() -> None:
    world = crowded(1000)
    world.store.in_memory = True
    peeks: list[int] = []
    peek = world.store.peek

    def counting(*args: object) -> object:
        peeks.append(1)
        return peek(*args)  # type: ignore[arg-type]

    world.store.peek = counting  # type: ignore[method-assign,assignment]
    world.hub.position_check.begin_round()
    assert 0 < len(peeks) < 500
    world.clock.advance(0)
    assert len(peeks) == 1000


@pytest.mark.parametrize("history", [True, False])
def test_channels_that_were_left_are_not_read(history: bool) -> None:
    world = crowded(8)
    member = world.member()
    world.store.in_memory = True
    seat = member.join(A) if history else member.join(B, history=NOT_KEPT)
    world.store.in_memory = False
    world.hub.position_check.begin_round()
    if history:
        member.leave(seat)
    assert finish_all(world).keys() == {f"ch{number}" for number in range(8)}


def test_after_stop_nothing_is_read() -> None:
    world = crowded(20)
    world.hub.position_check.start()
    world.clock.advance(PERIOD)
    world.hub.position_check.stop()
    assert len(finish_all(world)) == FEW // 2  # those that were under way
    world.clock.advance(10 * PERIOD)
    assert world.store.reads == []
    assert world.clock.pending == []


def test_what_is_in_memory_is_compared_at_once() -> None:
    world = ScriptedWorld(in_memory=True)
    member, seat = world.live()
    world.store.commit(A, "1", "2")
    world.store.untold.clear()  # by another process: this hub is told of nothing
    peeks = []
    peek = world.store.peek

    def noting(*args: object) -> object:
        peeks.append(args)
        return peek(*args)  # type: ignore[arg-type]

    world.store.peek = noting  # type: ignore[method-assign,assignment]
    world.hub.position_check.begin_round()
    member.drain()
    assert seat.offsets == [1, 2]
    assert peeks[0] == (A, KEPT, 0, 0)  # the top alone


def test_a_round_whose_reads_are_all_under_way_goes_on_too() -> None:
    world = crowded(FEW // 2)
    world.hub.position_check.begin_round()
    before = list(world.store.reads)
    assert len(before) == FEW // 2
    world.hub.position_check.begin_round()
    assert world.store.reads == before
    assert {(read.since, read.limit) for read in before} == {(0, 0)}


def test_it_may_be_stopped_before_it_starts() -> None:
    world = crowded(1)
    world.hub.position_check.stop()
    assert world.clock.pending == []

"""Hints and the cache: nothing that was known before a hint answers after it.

Two processes on one table: *there* commits, and its commits are the hints that *here*
is handed, as a broker would or would not. What was read is believed for ever in this
module, so only a hint makes a read look again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from service.core.model import Channel, Position
from service.core.ports import Committed, History
from service.stores.dynamodb.log import cache
from tests.stores.dynamodb.support import Faults

A = Channel("a")
KEPT = History(100, 60.0, 100.0)


class Heard:
    """The hearer; at each call it reads what it is told of, as the hub does."""

    def __init__(self) -> None:
        self.store = None
        self.told_of: list[int] = []
        self.tops: list[Position] = []

    def told(self, batch: Sequence[Committed]) -> None:
        for channel, publication, epoch, *_ in batch:
            self.told_of.append(publication.offset)
            page = self.store.peek(channel, KEPT, publication.offset - 1, -1)
            if page is not None:
                assert page.top.epoch == epoch
                assert page.top.offset >= publication.offset, "overtaken"

    def moved(self, channel: Channel, top: Position) -> None:
        self.tops.append(top)
        assert self.store.peek(channel, KEPT, 0, 0) is None


@pytest.fixture(autouse=True)
def believed(monkeypatch):
    monkeypatch.setattr(cache, "FRESH", 1e9)
    monkeypatch.setattr(cache, "UNCHANGED", 1e9)


@pytest.fixture
async def here(open_bench):
    heard = Heard()
    bench = await open_bench(Faults(), hearer=heard)
    heard.store, bench.heard = bench.store, heard
    bench.store.follow(A, KEPT)
    bench.store.store.confirmed(A)  # looked at once, and polled no more
    async with asyncio.timeout(60):
        while not heard.tops:
            await asyncio.sleep(0.01)
    heard.tops.clear()
    return bench


@pytest.fixture
async def there(open_bench):
    return await open_bench()


async def offsets(bench, since=0):
    page = await bench.store.read(A, KEPT, since, -1)
    assert [p.offset for p in page.publications] == list(
        range(since + 1, page.top.offset + 1)
    )
    return page.top.offset


async def commit(bench, count=1):
    """Commit one by one; return the hints."""
    before = len(bench.told)
    for _ in range(count):
        await bench.append("a", "1", KEPT)
    return bench.told[before:]


async def test_without_a_hint_what_was_read_is_believed(here, there):
    await commit(there)
    assert await offsets(here) == 1
    await commit(there)
    assert await offsets(here) == 1


async def test_a_hint_that_is_next_is_in_the_cache_before_it_is_told(here, there):
    await commit(there)
    assert await offsets(here) == 1
    reads = here.store.store.reads
    here.store.told(await commit(there, 2))
    assert here.heard.told_of == [2, 3]
    assert await offsets(here) == 3
    assert here.store.store.reads == reads  # from memory


@pytest.mark.parametrize(
    "order", [(3,), (1, 3), (3, 1, 2), (1, 1, 2, 2, 3, 3), (2, 1, 2)]
)
@pytest.mark.parametrize("warm", [True, False])
async def test_lost_doubled_and_reordered(here, there, order, warm):
    if warm:
        assert await offsets(here) == 0
    hints = await commit(there, 3)
    for number in order:
        here.store.told([hints[number - 1]])
        assert await offsets(here) == 3 or here.heard.told_of[-1] <= await offsets(here)
    # A position settles what was lost.
    here.store.moved(A, Position(3, there.told[-1].epoch))
    assert await offsets(here) == 3
    assert set(here.heard.told_of) == set(order)


async def test_a_position_alone(here, there):
    await commit(there)
    assert await offsets(here) == 1
    (hint,) = await commit(there)
    here.store.moved(A, Position(2, hint.epoch))
    assert here.heard.tops == [Position(2, hint.epoch)]
    assert await offsets(here) == 2


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("warm", [True, False])
async def test_a_hint_during_a_read_that_did_not_see_it(here, there, whole, warm):
    """The read that comes after the hint must not be given that one's result."""
    await commit(there)
    if warm:
        assert await offsets(here) == 1
        here.store.moved(A, Position(1, there.told[-1].epoch))
    looked, release = threading.Event(), threading.Event()

    def hold(operation):
        if operation == "GetItem" and not looked.is_set():
            looked.set()
            assert release.wait(60)

    here.faults.after.append(hold)
    early = asyncio.ensure_future(offsets(here))
    assert await asyncio.to_thread(looked.wait, 60)
    (hint,) = await commit(there)
    if whole:
        here.store.told([hint])
    else:
        here.store.moved(A, Position(2, hint.epoch))
    late = asyncio.ensure_future(offsets(here))
    await asyncio.sleep(0)
    release.set()
    assert await early in (1, 2)
    assert await late == 2
    assert await offsets(here) == 2


async def test_hints_of_an_epoch_that_is_over_and_of_one_that_begins(here, there):
    (old,) = await commit(there)
    assert await offsets(here) == 1
    here.clock.advance(200.0)  # the offsets restart
    (new,) = await commit(there)
    assert new.epoch != old.epoch and new.publication.offset == 1
    here.store.told([new])
    assert here.heard.told_of == []
    assert here.heard.tops == [Position(1, new.epoch)]
    page = await here.store.read(A, KEPT, 0, -1)
    assert page.top == Position(1, new.epoch)
    here.store.told([old])
    assert here.heard.told_of == []
    page = await here.store.read(A, KEPT, 0, -1)
    assert page.top == Position(1, new.epoch)


async def test_with_nothing_in_the_cache_a_read_tells_which_epoch_is_over(here, there):
    (old,) = await commit(there)
    here.clock.advance(200.0)
    (new,) = await commit(there)
    for hint in (old, new, old):
        await here.store.remove(A)  # it is in no cache then
        here.store.told([hint])
        page = await here.store.read(A, KEPT, 0, -1)
        assert page.top == Position(1, new.epoch)


async def test_an_unknown_channel_costs_nothing(here, there):
    hints = await commit(there)
    here.store.unfollow(A)
    calls = len(here.faults.calls)
    here.store.told(hints)
    here.store.moved(A, Position(1, "e"))
    here.store.told([hints[0]._replace(channel=Channel("b"))])
    await asyncio.sleep(0.05)
    assert here.heard.told_of == here.heard.tops == []
    assert len(here.faults.calls) == calls


async def test_what_others_erased_is_not_shown_again_by_a_hint(here, there):
    (hint,) = await commit(there)
    assert await offsets(here) == 1
    await there.store.remove(A)
    here.store.moved(A, Position(1, hint.epoch))
    page = await here.store.read(A, KEPT, 0, -1)
    assert page.publications == []
    here.store.told([hint])
    page = await here.store.read(A, KEPT, 0, -1)
    assert page.publications == []


async def test_an_append_after_a_hint_is_planned_with_the_new_top(here, there):
    await commit(here)
    (hint,) = await commit(there)
    here.store.told([hint])
    before = here.faults.count("TransactWriteItems")
    (own,) = await commit(here)
    assert own.publication.offset == 3
    # Not one that is cancelled, which costs as much as a publication.
    assert here.faults.count("TransactWriteItems") == before + 1


async def test_while_hints_rain_the_cache_catches_up(here, there):
    await commit(there)
    assert await offsets(here) == 1
    hints = await commit(there, 10)
    here.store.told(hints[1:5])  # the first was lost
    assert await offsets(here) >= 6
    here.store.told(hints[5:])
    reads = here.store.store.reads
    assert await offsets(here) == 11
    assert here.store.store.reads <= reads + 1
    assert await offsets(here) == 11

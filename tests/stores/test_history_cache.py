"""The tail cache and the shared reads, without a store."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.core.errors import StoreUnavailable
from service.core.model import HistoryPage, Position, Publication
from service.core.ports import Committed
from service.stores.history_cache import (
    InFlightRead,
    ReadRequest,
    SingleFlightReads,
    Tail,
    TailCache,
)

NOW = 1_000_000  # ms
ALL = ReadRequest(100, 100.0, 0, -1, False)


def publication(offset, data="x", time=NOW):
    return Publication(offset, data, time=time)


def commit(cache, *offsets, channel="a", epoch="e", size=100, data="x", time=NOW):
    committed = [Committed(channel, publication(n, data, time), epoch) for n in offsets]
    cache.extend(committed, {channel: size})


def tail(top, floor, offsets, epoch="e"):
    return Tail(epoch, top, floor, [publication(n) for n in offsets])


def a_read():
    return InFlightRead(asyncio.Future(loop=LOOP))


LOOP = asyncio.new_event_loop()


def teardown_module():
    LOOP.close()


def offsets(cache, request=ALL, channel="a", now=NOW):
    page = cache.answer(channel, request, now)
    return None if page is None else [p.offset for p in page.publications]


def test_an_unknown_channel_is_not_answered():
    assert TailCache(10_000).answer("a", ALL, NOW) is None


def test_commits_from_the_first_on_are_answered():
    cache = TailCache(10_000)
    commit(cache, 1, 2)
    commit(cache, 3)
    assert offsets(cache) == [1, 2, 3]
    assert cache.answer("a", ALL, NOW).top == Position(3, "e")


def test_commits_of_a_channel_already_in_use_are_answered_from_there_on():
    cache = TailCache(10_000)
    commit(cache, 8, 9)
    assert offsets(cache, ALL._replace(since=7)) == [8, 9]
    assert offsets(cache, ALL._replace(since=6)) is None
    assert offsets(cache, ALL._replace(size=2)) == [8, 9]
    assert offsets(cache, ALL._replace(limit=0)) == []


def test_without_expired_ones_nothing_is_known_of_what_is_below():
    cache = TailCache(10_000)
    commit(cache, 8, time=NOW - 50_000)
    commit(cache, 9)
    assert offsets(cache) is None
    assert offsets(cache, ALL._replace(ttl=50.0)) == [9]


def test_what_a_read_found_is_put_below_what_was_committed_meanwhile():
    cache = TailCache(10_000)
    commit(cache, 4, 5)
    under_way = a_read()
    cache.in_flight["a"] = under_way
    commit(cache, 6)
    assert under_way.written
    cache.fill("a", tail(4, 0, [1, 2, 3, 4]), under_way)
    assert offsets(cache) == [1, 2, 3, 4, 5, 6]


def test_a_read_that_missed_a_commit_does_not_replace_a_forgotten_tail():
    cache = TailCache(2000)
    under_way = a_read()
    cache.in_flight["a"] = under_way
    commit(cache, 4)
    commit(cache, 1, channel="b", data="x" * 2000)  # drives the other one out
    assert offsets(cache) is None
    cache.fill("a", tail(3, 0, [1, 2, 3]), under_way)
    assert offsets(cache) is None


def test_a_read_that_ended_before_a_gap_is_not_joined_to_what_is_above():
    cache = TailCache(10_000)
    commit(cache, 9)
    cache.fill("a", tail(7, 0, [5, 6, 7]), a_read())
    assert offsets(cache) is None
    assert offsets(cache, ALL._replace(since=8)) == [9]


def test_a_read_that_missed_a_removal_is_not_kept():
    cache = TailCache(10_000)
    under_way = a_read()
    cache.in_flight["a"] = under_way
    cache.clear("a", 3, "e")
    cache.fill("a", tail(3, 0, [1, 2, 3]), under_way)
    assert offsets(cache) is None


@pytest.mark.parametrize("found", [tail(3, 0, []), tail(5, 0, [4, 5])])
def test_a_read_that_saw_a_removal_first_is_not_joined_to_what_was_removed(found):
    cache = TailCache(10_000)
    commit(cache, 2, 3)
    cache.fill("a", found, a_read())
    assert offsets(cache) is None
    assert offsets(cache, ALL._replace(since=1)) == [2, 3]


def test_a_read_that_finds_nothing_below_says_so():
    cache = TailCache(10_000)
    commit(cache, 2, 3)
    cache.fill("a", tail(3, 0, [2, 3]), a_read())
    assert offsets(cache) == [2, 3]


def test_a_commit_that_a_read_saw_first_is_not_doubled():
    cache = TailCache(10_000)
    cache.fill("a", tail(3, 0, [1, 2, 3]), a_read())
    commit(cache, 3, 4)
    assert offsets(cache) == [1, 2, 3, 4]


def test_a_restarted_stream_replaces_the_old_one():
    cache = TailCache(10_000)
    commit(cache, 1, 2, 3)
    commit(cache, 1, epoch="f")
    assert offsets(cache) == [1]
    assert cache.answer("a", ALL, NOW).top == Position(1, "f")


def test_removal_keeps_the_top():
    cache = TailCache(10_000)
    commit(cache, 1, 2, 3)
    cache.clear("a", 3, "e")
    assert offsets(cache) == []
    assert cache.answer("a", ALL, NOW).top == Position(3, "e")
    commit(cache, 4)
    assert offsets(cache) == [4]


def test_an_expired_channel_is_forgotten_and_so_are_all_unpublished_ones():
    cache = TailCache(10_000)
    commit(cache, 1)
    commit(cache, 1, channel="b")
    cache.fill("c", tail(0, 0, []), a_read())
    assert offsets(cache, channel="c") == []
    cache.expire(["a"])
    assert offsets(cache, channel="a") is None
    assert offsets(cache, channel="b") == [1]
    assert offsets(cache, channel="c") is None
    cache.fill("c", tail(0, 0, [], epoch="f"), a_read())
    assert cache.answer("c", ALL, NOW).top == Position(0, "f")


def test_the_channel_unused_for_longest_is_forgotten_first():
    cache = TailCache(5000)
    for name in ("a", "b", "c"):
        commit(cache, 1, channel=name, data="x" * 500)
    assert offsets(cache, channel="a") == [1]
    commit(cache, 1, channel="d", data="x" * 500)
    assert [offsets(cache, channel=name) for name in "abcd"] == [[1], None, [1], [1]]
    assert cache.bytes <= 5000


def test_of_a_single_channel_the_oldest_are_forgotten_first():
    cache = TailCache(20_000)
    for n in range(1, 101):
        commit(cache, n, data="x" * 500)
        assert cache.bytes <= 20_000
    assert offsets(cache) is None
    assert offsets(cache, ALL._replace(since=99)) == [100]


def test_a_publication_above_the_bound_leaves_only_the_top():
    cache = TailCache(1000)
    commit(cache, 1, data="x" * 5000)
    assert cache.bytes <= 1000
    assert offsets(cache, ALL._replace(limit=0)) in ([], None)


@pytest.mark.parametrize("limit", [1, 300, 2000, 100_000])
def test_the_cost_is_what_is_cached(limit):
    cache = TailCache(limit)
    for n in range(1, 400):
        commit(cache, n, channel=f"c{n % 7}", epoch=str(n), data="x" * (n * 37 % 300))
        cache.fill(f"d{n % 5}", tail(9, 3, range(4, 10)), a_read())
        assert cache.bytes <= limit
    for n in range(7):
        cache.forget(f"c{n}")
        cache.forget(f"d{n}")
    assert cache.bytes == 0


class Interleavings(RuleBasedStateMachine):
    """One channel; a store whose events and reads reach the cache late, in any mix.

    `versions` is every state the store was in. The cache may answer with any state
    from the newest one it was told of on, and with nothing older.
    """

    def __init__(self):
        super().__init__()
        self.cache = TailCache(3000)
        self.versions = [("e0", 0, ())]
        self.events = []  # what the cache was not told of yet
        self.told = 0
        self.read = None
        self.found = None

    def change(self, epoch, top, kept, tell):
        self.versions.append((epoch, top, kept))
        self.events.append(tell)

    @rule(count=st.integers(1, 3))
    def commit(self, count):
        epoch, top, kept = self.versions[-1]
        new = range(top + 1, top + count + 1)
        fresh = [Committed("a", publication(n), epoch) for n in new]
        self.change(
            epoch,
            top + count,
            kept + tuple(new),
            lambda: self.cache.extend(fresh, {"a": 100}),
        )

    @rule()
    def remove(self):
        epoch, top, _ = self.versions[-1]
        if top:
            self.change(epoch, top, (), lambda: self.cache.clear("a", top, epoch))

    @rule()
    def expire(self):
        epoch = f"e{len(self.versions)}"
        self.change(epoch, 0, (), lambda: self.cache.expire(["a"]))

    @precondition(lambda self: self.events)
    @rule()
    def tell(self):
        self.events.pop(0)()
        self.told += 1

    @rule()
    def drive_out(self):
        commit(self.cache, 1, channel="b", data="x" * 1200, epoch=str(self.told))

    @precondition(lambda self: self.read is None)
    @rule()
    def launch(self):
        self.read = self.cache.in_flight["a"] = a_read()
        self.found = None

    @precondition(lambda self: self.read and self.found is None)
    @rule(since=st.integers(0, 6))
    def snapshot(self, since):
        epoch, top, kept = self.versions[-1]
        floor = min(since, top)
        self.found = tail(top, floor, [n for n in kept if n > floor], epoch)

    @precondition(lambda self: self.found)
    @rule()
    def land(self):
        del self.cache.in_flight["a"]
        self.cache.fill("a", self.found, self.read)
        self.read = self.found = None

    @invariant()
    def answers_are_not_out_of_date(self):
        for since in (0, 2, 5):
            for limit in (0, 2, -1):
                page = self.cache.answer(
                    "a", ReadRequest(100, 1.0, since, limit, False), NOW
                )
                if page is not None:
                    possible = [
                        answer(version, since, limit)
                        for version in self.versions[self.told :]
                    ]
                    assert plain(page) in possible
        assert self.cache.bytes <= 3000


def answer(version, since, limit):
    epoch, top, kept = version
    found = [n for n in kept if n > since]
    return (epoch, top, found if limit < 0 else found[:limit])


def plain(page: HistoryPage):
    return (page.top.epoch, page.top.offset, [p.offset for p in page.publications])


class TestInterleavings(Interleavings.TestCase):
    settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


class Database:
    """One channel that is read slowly, and the shared reads in front of it."""

    def __init__(self):
        self.top = 3
        self.error = None
        self.go_on = asyncio.Event()
        self.refusal = None
        self.reads = SingleFlightReads(
            TailCache(1),
            answer=lambda channel, request: None,
            load=self.load,
            refusal=lambda: self.refusal,
        )

    async def load(self, channel, read):
        found = tail(self.top, 0, range(1, self.top + 1))
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        return found.answer_rest(read.requests, {}, NOW)

    def ask(self, request=ALL):
        return asyncio.ensure_future(self.reads.read("a", request))


async def step():
    for _ in range(3):
        await asyncio.sleep(0)


async def test_all_who_ask_in_one_step_share_a_read_whatever_they_ask():
    database = Database()
    asked = [database.ask(ALL._replace(since=n % 3)) for n in range(9)]
    await step()
    database.go_on.set()
    pages = await asyncio.gather(*asked)
    assert database.reads.count == 1
    assert [plain(page)[2] for page in pages] == [[1, 2, 3], [2, 3], [3]] * 3


async def test_who_asks_after_the_start_is_given_a_later_read():
    database = Database()
    early = database.ask()
    await step()
    database.top = 4
    late = [database.ask() for _ in range(2)]
    await step()
    assert database.reads.count == 1
    database.go_on.set()
    assert (await early).top.offset == 3
    assert [(await page).top.offset for page in late] == [4, 4]
    assert database.reads.count == 2


@pytest.mark.parametrize("error", [StoreUnavailable("on purpose"), ValueError()])
async def test_a_read_that_fails_fails_for_all_and_the_next_one_works(error):
    database = Database()
    database.go_on.set()
    database.error = error
    asked = [database.ask() for _ in range(3)]
    for failed in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(failed, StoreUnavailable)
    database.error = None
    assert (await database.ask()).top.offset == 3


async def test_nothing_is_read_once_reading_is_refused():
    database = Database()
    asked = database.ask()
    await asyncio.sleep(0)
    database.refusal = "closed"
    for refused in (asked, database.ask()):
        with pytest.raises(StoreUnavailable, match="closed"):
            await refused
    assert database.reads.count == 0
    await database.reads.close()

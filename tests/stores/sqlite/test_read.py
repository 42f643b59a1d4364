"""Reads of the SQLite store: how many reach the database, and what they see."""

from __future__ import annotations

import asyncio
import random

import pytest

from service.core.errors import StoreUnavailable
from service.core.ports import History
from tests.stores.support import CHAT, Bench, in_memory, on_disk

LONG = History(5000, 60.0)


@pytest.fixture(params=[in_memory, on_disk], ids=["memory", "disk"])
async def cold(request, tmp_path, clock):
    """Return a store with 1000 publications in ``a``, of which few are cached."""
    bench = Bench(request.param(tmp_path, clock, cache_size=200_000), clock)
    await bench.start()
    await bench.fill("a", 1000, LONG)
    await bench.fill("b", 900, LONG)  # drives ``a`` out
    assert bench.store.peek("a", LONG, 0, 0) is None
    yield bench
    await bench.store.close()


async def test_10000_readers_of_a_cold_channel_are_one_read(cold):
    before = cold.store.reads
    pages = await asyncio.gather(
        *[cold.read("a", 990, -1, history=LONG) for _ in range(10_000)]
    )
    assert cold.store.reads == before + 1
    for page in pages:
        assert [p.offset for p in page.publications] == list(range(991, 1001))


async def test_10000_readers_who_want_different_things_are_one_read(cold):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    wants = [
        (rng.randrange(700, 1001), rng.choice([-1, 0, 300])) for _ in range(10_000)
    ]
    before = cold.store.reads
    pages = await asyncio.gather(
        *[cold.read("a", since, limit, history=LONG) for since, limit in wants]
    )
    assert cold.store.reads == before + 1
    for (since, limit), page in zip(wants, pages, strict=True):
        found = [p.offset for p in page.publications]
        assert found == ([] if limit == 0 else list(range(since + 1, 1001)))


async def test_who_comes_after_the_read_is_answered_from_memory(cold):
    await cold.read("a", 990, -1, history=LONG)
    before = cold.store.reads
    for since in range(990, 1001):
        await cold.read("a", since, -1, history=LONG)
        assert cold.store.peek("a", LONG, since, -1) is not None
    assert cold.store.reads == before


async def test_who_asks_for_the_top_costs_no_publications(cold):
    assert (await cold.read("a", 0, 0, history=LONG)).top.offset == 1000
    before = cold.store.reads
    assert (await cold.read("a", 1000, -1, history=LONG)).publications == []
    assert cold.store.reads == before
    assert await cold.offsets("a", 998, history=LONG) == [999, 1000]
    assert cold.store.reads == before + 1


@pytest.mark.parametrize("factory", [in_memory, on_disk])
async def test_an_active_channel_is_answered_without_any_read(tmp_path, clock, factory):
    bench = await Bench(factory(tmp_path, clock), clock).start()
    await bench.fill("a", 50)
    page = bench.store.peek("a", CHAT, 0, -1)
    assert [p.offset for p in page.publications] == list(range(1, 51))
    assert await bench.offsets("a", 45) == [46, 47, 48, 49, 50]
    assert await bench.offsets("a", None, 2, reverse=True) == [50, 49]
    assert bench.store.reads == 0
    await bench.store.close()


async def test_far_pages_are_read_for_themselves(cold):
    big = await asyncio.gather(
        cold.read("a", 0, 5, history=LONG),
        cold.read("a", 0, 5, history=LONG),
        cold.read("a", 10, 5, history=LONG, reverse=True),
        cold.read("a", 100, 5, history=LONG),
        cold.read("a", 998, 5, history=LONG),
    )
    assert [[p.offset for p in page.publications] for page in big] == [
        [1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5],
        [9, 8, 7, 6, 5],
        [101, 102, 103, 104, 105],
        [999, 1000],
    ]
    assert {page.top.offset for page in big} == {1000}


async def test_a_reader_who_gives_up_does_not_disturb_the_others(cold):
    reads = [
        asyncio.ensure_future(cold.read("a", 990, -1, history=LONG)) for _ in range(10)
    ]
    await asyncio.sleep(0)
    for read in reads[::2]:
        read.cancel()
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert [isinstance(o, asyncio.CancelledError) for o in outcomes[::2]] == [True] * 5
    assert all(len(o.publications) == 10 for o in outcomes[1::2])


async def test_closing_fails_the_reads_that_were_not_begun(cold):
    reads = [
        asyncio.ensure_future(cold.read("a", 990, -1, history=LONG)) for _ in range(10)
    ]
    await asyncio.sleep(0)
    await cold.store.close()
    for outcome in await asyncio.gather(*reads, return_exceptions=True):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, StoreUnavailable)
        else:
            assert len(outcome.publications) == 10


async def test_who_comes_after_a_commit_is_not_given_a_read_from_before_it(
    tmp_path, clock
):
    """A read that takes long, a commit that does not, and then another reader."""
    bench = await Bench(on_disk(tmp_path, clock, cache_size=1), clock).start()
    await asyncio.gather(
        *[bench.append("a", '"' + "x" * 2000 + '"', LONG) for _ in range(4000)]
    )
    overtaken = 0
    for _ in range(20):
        before = bench.store.reads
        early = asyncio.ensure_future(bench.read("a", 0, -1, history=LONG))
        while bench.store.reads == before:
            await asyncio.sleep(0)
        offset = (await bench.append("a", "1", LONG)).position.offset
        overtaken += not early.done()
        late = await bench.read("a", 0, -1, history=LONG)
        assert late.top.offset >= offset
        assert late.publications[-1].offset == late.top.offset
        await early
    assert overtaken
    await bench.store.close()


@pytest.mark.parametrize("size", [1, 3000, 10_000_000])
async def test_reads_between_commits_never_miss_one_already_told_of(
    tmp_path, clock, size
):
    """Readers, appenders and removals at once, with a cache of every quality."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    bench = await Bench(on_disk(tmp_path, clock, cache_size=size), clock).start()
    told = {"a": 0, "b": 0, "c": 0}
    removed = dict(told)

    def hook(committed):
        for channel, publication, *_ in committed:
            told[channel] = publication.offset

    async def appender():
        for _ in range(100):
            await bench.append(rng.choice("abc"))

    async def reader():
        for _ in range(100):
            channel = rng.choice("abc")
            since = max(0, told[channel] - rng.randrange(6))
            seen = told[channel]
            page = await bench.read(channel, since)
            found = [p.offset for p in page.publications]
            assert page.top.offset >= seen
            if since >= removed[channel]:
                low = max(since, page.top.offset - 100)
                assert found == list(range(low + 1, page.top.offset + 1))
            else:
                assert found == list(
                    range(page.top.offset - len(found) + 1, page.top.offset + 1)
                )

    async def remover():
        for _ in range(5):
            channel = rng.choice("abc")
            await bench.append(channel)
            removed[channel] = 10**9  # any may be gone while it is under way
            await bench.store.remove(channel)
            removed[channel] = told[channel]

    bench.hook = hook
    await asyncio.gather(
        *[appender() for _ in range(8)], *[reader() for _ in range(8)], remover()
    )
    await bench.store.close()

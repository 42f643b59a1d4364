"""Limits of what is kept, and what is given back to the disk."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from service.core.errors import StoreFull
from service.core.ports import NO_HISTORY, History
from service.settings import StoreSettings
from service.stores.sqlite.store import SqliteStore
from tests.stores.support import Bench, on_disk

MiB = 1024 * 1024
BRIEF = History(100_000, 60.0)
DATA = '"' + "x" * 9_998 + '"'  # 10,000 bytes


@pytest.fixture
async def open_bench(tmp_path, clock):
    opened = []

    async def open_bench(namespaces=None, **settings):
        values = {"path": str(tmp_path / "store.db"), **settings}
        store = SqliteStore(StoreSettings(**values), clock, namespaces=namespaces or {})
        opened.append(await Bench(store, clock).start())
        return opened[-1]

    yield open_bench
    for bench in opened:
        await bench.store.close()


async def fill(bench, count, channel="a", data=DATA):
    """Publish one after another; return how many were accepted before a refusal."""
    for number in range(count):
        try:
            await bench.append(channel, data, BRIEF)
        except StoreFull:
            return number
    return count


async def test_a_full_store_refuses_what_would_be_kept_and_nothing_else(open_bench):
    bench = await open_bench(max_size=4 * MiB)
    count = await fill(bench, 1000)
    # A publication of 10,000 bytes takes three pages; measured at each MiB.
    assert 4 * MiB / 3 / 4096 < count < 5 * MiB / 3 / 4096 + 105
    with pytest.raises(StoreFull, match=r"the store is full \(store.max_size\)"):
        await bench.append("b", "1", BRIEF)
    # What is not kept is delivered; everything else goes on.
    assert (await bench.append("a", "1", NO_HISTORY)).fresh
    assert len((await bench.read("a", history=BRIEF, limit=10)).publications) == 10
    await bench.store.state.put("ticket", "t", "v", 60.0)
    assert await bench.store.state.take("ticket", "t") == "v"
    assert await bench.store.erase('{"user":"nobody",') == 0
    assert bench.store.fault() is None
    await bench.store.remove("a")
    assert (await bench.append("a", "1", BRIEF)).position.offset == count + 1


async def test_a_store_accepts_again_below_the_low_mark(open_bench):
    bench = await open_bench(max_size=4 * MiB)
    for channel in "abcdefghijklmnopqrstuvwxyz":
        await fill(bench, 20, channel)
    with pytest.raises(StoreFull):
        await bench.append("z", "1", BRIEF)
    await bench.store.remove("a")  # some 5 %
    assert 0.9 * 4 * MiB < bench.store.sizes.used < 4 * MiB
    with pytest.raises(StoreFull):
        await bench.append("z", "1", BRIEF)
    for channel in "bcd":
        await bench.store.remove(channel)
    assert bench.store.sizes.used < 0.9 * 4 * MiB
    assert (await bench.append("z", "1", BRIEF)).fresh


async def test_expiry_makes_room(open_bench):
    bench = await open_bench(max_size=4 * MiB)
    await fill(bench, 1000)
    bench.clock.advance(60.0)
    await bench.sweep()
    assert (await bench.append("b", "1", BRIEF)).fresh


async def test_a_full_store_is_full_after_a_restart(open_bench):
    bench = await open_bench(max_size=4 * MiB)
    await fill(bench, 1000)
    await bench.store.close()
    bench = await open_bench(max_size=4 * MiB)
    with pytest.raises(StoreFull):
        await bench.append("b", "1", BRIEF)


async def test_a_namespace_has_a_limit_of_its_own(open_bench):
    limits = {"chat": 100_000, "": 50_000}
    bench = await open_bench(limits)
    assert await fill(bench, 100, "chat:1") == 10
    with pytest.raises(StoreFull, match="the namespace 'chat' is full"):
        await bench.append("$chat:2", "1", BRIEF)
    assert await fill(bench, 100, "plain") == 5
    assert await fill(bench, 20, "other:1") == 20  # it has no limit
    await bench.store.remove("plain")
    await bench.store.remove("chat:1")
    assert await fill(bench, 100, "$chat:2") == 10
    await bench.store.close()
    bench = await open_bench(limits)
    with pytest.raises(StoreFull):
        await bench.append("chat:1", "1", BRIEF)
    assert await fill(bench, 100, "plain") == 5


async def test_a_namespace_counts_what_is_trimmed_expired_and_erased(open_bench):
    bench = await open_bench({"chat": 1_000_000})
    small = History(10, 60.0)
    for _ in range(300):  # 3 MB, of which some 80 publications are stored
        await bench.append("chat:1", DATA, small, info='{"user":"me","client":"c"}')
    bench.clock.advance(60.0)
    await bench.sweep()
    assert await fill(bench, 1000, "chat:2") == 100
    bench.clock.advance(60.0)
    await bench.sweep()
    for _ in range(100):
        await bench.append("chat:3", DATA, BRIEF, info='{"user":"me","client":"c"}')
    with pytest.raises(StoreFull):
        await bench.append("chat:3", "1", BRIEF)
    assert await bench.store.erase('{"user":"me",') == 100
    assert await fill(bench, 1000, "chat:3") == 100


async def test_a_batch_that_is_planned_twice_is_counted_once(open_bench):
    bench = await open_bench({"chat": 100_000})
    for number in range(10):  # each batch has the key of the one before
        keys = [f"{number}", f"{number + 1}"]
        done = [
            bench.append("chat:1", DATA, BRIEF, idempotency_key=key) for key in keys
        ]
        if number < 9:
            await asyncio.gather(*done)
    await asyncio.gather(*done, return_exceptions=True)
    assert len(bench.told_of("chat:1")) in (10, 11)
    with pytest.raises(StoreFull):
        await bench.append("chat:1", "1", BRIEF)


async def test_the_file_and_its_log_shrink(open_bench, tmp_path):
    bench = await open_bench()
    for start in range(0, 3000, 100):
        done = [bench.append("a", DATA, BRIEF) for _ in range(start, start + 100)]
        await asyncio.gather(*done)
    await bench.append("kept", '"kept"', History(10, 3600.0))
    await bench.sweep()
    before = (tmp_path / "store.db").stat().st_size
    assert before > 25_000_000
    bench.clock.advance(60.0)
    for _ in range(10):
        await bench.sweep()
    sizes = bench.store.sizes
    assert (tmp_path / "store.db").stat().st_size == sizes.file < 2 * MiB
    assert (tmp_path / "store.db-wal").stat().st_size == sizes.log <= 16 * MiB
    page = await bench.read("kept", history=History(10, 3600.0))
    assert [p.data for p in page.publications] == ['"kept"']
    await bench.store.close()
    found = sqlite3.connect(tmp_path / "store.db")
    assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    found.close()


async def test_a_file_of_an_older_version_is_made_to_shrink(tmp_path, clock):
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    await bench.fill("a", 5)
    await bench.store.close()
    old = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    old.execute("PRAGMA journal_mode = DELETE")
    old.execute("PRAGMA auto_vacuum = NONE")
    old.execute("VACUUM")
    assert old.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    old.close()
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    assert await bench.offsets("a") == [1, 2, 3, 4, 5]
    await bench.store.close()
    new = sqlite3.connect(tmp_path / "store.db")
    assert new.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    new.close()

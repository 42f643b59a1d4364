"""Deleting what has expired, and blanking what must be erased, as the file shows it."""

from __future__ import annotations

import asyncio

import pytest

from service.core.errors import StoreUnavailable
from service.core.ports import History
from tests.stores.sqlite.support import stored
from tests.stores.support import Bench, on_disk


async def test_the_sweep_deletes_what_has_expired_and_nothing_else(bench, other):
    await bench.fill("a", 2000, History(5000, 60.0))
    bench.clock.advance(50.0)
    await bench.fill("a", 5, History(5000, 60.0))
    await bench.append("b", idempotency_key="k", history=History(10, 1000.0))
    bench.clock.advance(10.0)
    await bench.sweep()
    assert stored(other, "a") == list(range(2001, 2006))
    assert stored(other, "b") == [1]
    bench.clock.advance(300.0)
    await bench.sweep()
    assert stored(other, "a") == []
    assert stored(other, "b") == [1]
    assert other.execute("SELECT count(*) FROM idempotency").fetchone() == (0,)


async def test_the_sweep_deletes_many_channels(bench, other):
    brief = History(10, 5.0, meta_ttl=60.0)
    await asyncio.gather(*[bench.append(f"c{n}", "1", brief) for n in range(500)])
    await bench.append("stays")
    bench.clock.advance(61.0)
    await bench.sweep()
    assert other.execute("SELECT name FROM channels").fetchall() == [("stays",)]
    top = (await bench.read("c7")).top
    assert (await bench.append("c7")).position == (1, top.epoch)
    epochs = other.execute("SELECT count(DISTINCT epoch) FROM generations").fetchone()
    assert epochs[0] > 400


async def test_a_publication_that_is_due_sooner_than_the_metadata_is_swept(
    bench, other
):
    await bench.append("a")
    bench.clock.advance(61.0)
    await bench.sweep()
    assert stored(other, "a") == []
    await bench.append("a")
    assert stored(other, "a") == [2]
    bench.clock.advance(61.0)
    await bench.sweep()
    assert stored(other, "a") == []


async def test_a_sweep_that_fails_is_made_up_for(bench, other):
    await bench.fill("a", 3)
    other.execute("BEGIN IMMEDIATE")
    bench.clock.advance(61.0)
    with pytest.raises(StoreUnavailable):
        await bench.store.remove("b")
    other.execute("ROLLBACK")
    await bench.sweep()
    assert stored(other, "a") == []


async def test_nothing_of_it_is_left_in_the_file(tmp_path, clock):
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    secret = "s3cret-words"
    for n in range(300):
        text = f'"{secret} {n} {"x" * (n % 5 * 1500)}"'
        await bench.append("a", text, info='{"user":"me","client":"c"}')
    files = [tmp_path / "store.db", tmp_path / "store.db-wal"]
    assert any(secret.encode() in path.read_bytes() for path in files)
    await bench.store.erase('{"user":"me",')
    assert not any(secret.encode() in path.read_bytes() for path in files)
    await bench.store.close()

"""The log in SQLite: what is stored, and what happens when others write to it."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from service.core.ports import History
from tests.clock import VirtualClock
from tests.stores.sqlite.support import stored
from tests.stores.support import CHAT, Bench, on_disk, uncached

# Other connections. The lock keeps other servers away, not a person with a shell.


async def test_offsets_continue_after_what_another_connection_appended(bench, other):
    await bench.fill("a", 3)
    for offset in (4, 5):
        other.execute(
            "INSERT INTO publications (channel_id, offset, time, data)"
            " SELECT id, ?, 1700000000000, 'theirs' FROM channels WHERE name = 'a'",
            (offset,),
        )
    outcomes = await asyncio.gather(*[bench.append("a", str(n)) for n in range(50)])
    assert [o.position.offset for o in outcomes] == list(range(6, 56))
    assert stored(other, "a") == list(range(1, 56))
    page = await bench.read("a")
    assert [p.offset for p in page.publications] == list(range(1, 56))


async def test_a_channel_that_another_connection_created_is_not_doubled(bench, other):
    await bench.append("a")
    other.execute(
        "INSERT INTO channels SELECT 2, 'b', epoch, 7, 1700000000000, ttl, meta_ttl,"
        " due, 0, '' FROM channels"
    )
    assert (await bench.append("b")).position.offset == 8
    assert (await bench.append("c")).position.offset == 1
    assert (await bench.append("a")).position.offset == 2


@pytest.mark.parametrize("what", ["", "WHERE offset > 2", "WHERE offset < 2"])
async def test_offsets_continue_when_another_connection_deleted(
    bench, other, tmp_path, clock, what
):
    await bench.fill("a", 3)
    other.execute(f"DELETE FROM publications {what}")
    assert (await bench.append("a")).position.offset == 4
    other.execute("DELETE FROM publications")
    await bench.store.close()
    again = await Bench(on_disk(tmp_path, clock), clock).start()
    assert (await again.append("a")).position.offset == 5
    await again.store.close()


async def test_a_key_that_another_connection_stored_counts(bench, other):
    await bench.fill("a", 3)
    other.execute(
        "INSERT INTO idempotency (channel, key, offset, epoch, expires)"
        " VALUES ('a', 'k', 2, 'e', 1700000300000)"
    )
    outcome = await bench.append("a", idempotency_key="k")
    assert outcome == ((2, "e"), False)


async def test_appends_between_those_of_another_connection_stay_dense(tmp_path, clock):
    large = History(1000, 60.0)
    bench = await Bench(on_disk(tmp_path, clock, lock_timeout=60.0), clock).start()
    other = sqlite3.connect(tmp_path / "store.db", timeout=60.0, isolation_level=None)

    async def ours():
        for _ in range(100):
            await bench.append("a", history=large)

    async def theirs():
        for _ in range(30):
            other.execute("BEGIN IMMEDIATE")
            other.execute(
                "INSERT INTO publications (channel_id, offset, time, data)"
                " SELECT id, 1 + (SELECT max(offset) FROM publications"
                " WHERE channel_id = channels.id), 1700000000000, 'theirs'"
                " FROM channels WHERE name = 'a'"
            )
            other.execute("COMMIT")
            await bench.read("b", 0, 0)

    await bench.append("a", history=large)
    await asyncio.gather(ours(), ours(), theirs())
    assert stored(other, "a") == list(range(1, 232))
    other.close()
    await bench.store.close()


# Rows in the file


async def test_a_channel_is_trimmed_to_little_more_than_its_size(bench, other):
    short = History(10, 60.0)
    most = 0
    for n in range(30):
        await asyncio.gather(*[bench.append("a", "1", short) for _ in range(30)])
        most = max(most, len(stored(other, "a")))
        assert await bench.offsets("a", history=short) == list(
            range(30 * n + 21, 30 * n + 31)
        )
    assert most < 10 + 64 + 30


async def test_a_smaller_size_trims_step_by_step(bench, other):
    await bench.fill("a", 5000, History(5000, 60.0))
    short = History(10, 60.0)
    counts = []
    for _ in range(6):
        await bench.append("a", "1", short)
        counts.append(len(stored(other, "a")))
        assert len(await bench.offsets("a", history=short)) == 10
    assert counts[0] > 3000
    assert counts[-1] <= 10 + 64


async def test_power_durability_stores_the_same(tmp_path, clock):
    bench = await Bench(on_disk(tmp_path, clock, durability="power"), clock).start()
    await bench.fill("a", 20)
    await bench.store.close()
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    assert await bench.offsets("a", history=CHAT) == list(range(1, 21))
    await bench.store.close()


async def test_a_wall_clock_set_back_between_runs_expires_only_prefixes(tmp_path):
    large = History(1000, 60.0)
    bench = await Bench(on_disk(tmp_path, late := VirtualClock()), late).start()
    await bench.fill("a", 3, large)
    await bench.store.close()
    early = VirtualClock(wall=1_699_999_950.0)
    bench = await Bench(uncached(tmp_path, early), early).start()
    await bench.fill("a", 700, large)
    early.advance(61.0)
    assert await bench.offsets("a", 0, 5, history=large) == [1, 2, 3, 4, 5]
    assert len(await bench.offsets("a", history=large)) == 703
    early.advance(50.0)
    assert await bench.offsets("a", 0, 5, history=large) == []
    assert await bench.offsets("a", history=large) == []
    await bench.store.close()


async def test_the_id_of_a_publication_is_never_given_again(bench, tmp_path, clock):
    await bench.fill("a", 5)
    await bench.store.remove("a")
    await bench.store.close()
    again = await Bench(on_disk(tmp_path, clock), clock).start()
    await again.append("b")
    other = sqlite3.connect(tmp_path / "store.db")
    assert other.execute("SELECT id FROM publications").fetchall() == [(6,)]
    other.close()
    await again.store.close()

"""The State port on SQLite: other processes, kills, the sweep, older files."""

from __future__ import annotations

import asyncio
import sqlite3
import sys

import pytest

from service.core.errors import StoreCorrupt, StoreUnavailable
from service.core.ports import StateEntry
from service.settings import StoreSettings
from service.stores.sqlite.backup import backup, restore
from tests.stores.sqlite.support import ROOT
from tests.stores.sqlite.taker import KEYS
from tests.stores.support import Bench, on_disk


async def taker(*arguments):
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.stores.sqlite.taker", *map(str, arguments)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def start(tmp_path, clock, **settings):
    return await Bench(on_disk(tmp_path, clock, **settings), clock).start()


def rows(tmp_path):
    connection = sqlite3.connect(tmp_path / "store.db")
    try:
        return connection.execute("SELECT kind, key FROM state ORDER BY key").fetchall()
    finally:
        connection.close()


async def test_four_processes_are_given_each_value_once(tmp_path, clock):
    # SQLite gives its lock to anybody: on a busy machine to these four for seconds.
    bench = await start(tmp_path, clock, lock_timeout=60.0)
    for number in range(KEYS):
        await bench.store.state.put("t", f"k{number}", f"v{number}", 60)
    path = tmp_path / "store.db"
    takers = [await taker("take", path) for _ in range(4)]
    for process in takers:
        assert await process.stdout.readline() == b"ready\n"
    for process in takers:
        process.stdin.write(b"go\n")
    # This process publishes meanwhile, so that its group commits meet theirs.
    await bench.fill("a", 500)
    outputs = [(await process.communicate())[0].decode() for process in takers]
    given = [line for output in outputs for line in output.split()]
    assert sorted(given) == sorted(f"v{number}" for number in range(KEYS))
    assert await bench.offsets("a") == list(range(401, 501))
    await bench.store.close()


async def test_kill_loses_nothing_that_was_kept(tmp_path, clock):
    path = tmp_path / "store.db"
    process = await taker("keep", path)
    lines = [await process.stdout.readline() for _ in range(50)]
    process.kill()
    rest, _ = await process.communicate()
    kept = (b"".join(lines) + rest).decode().splitlines(keepends=True)
    known = {line.strip() for line in kept if line.endswith("\n")}
    bench = await start(tmp_path, clock)
    found = {entry.key for entry in await bench.store.state.entries("t")}
    assert len(known) >= 50
    assert known <= found
    assert len(found) <= len(known) + 1  # one may be kept and not yet said
    await bench.store.close()


async def test_the_sweep_deletes_what_has_expired(tmp_path, clock):
    bench = await start(tmp_path, clock, sweep_interval=30.0)
    for number in range(1100):  # more than one step's
        await bench.store.state.put("t", f"k{number}", "v", 10)
    await bench.store.state.put("t", "stays", "v", 3600)
    await bench.sweep()
    assert rows(tmp_path) == [("t", "stays")]
    assert await bench.store.state.take("t", "stays") == "v"
    await bench.store.close()


async def test_an_older_file_is_migrated_and_keeps_what_it_has(tmp_path, clock):
    bench = await start(tmp_path, clock)
    await bench.fill("a", 3)
    epoch = (await bench.read("a")).top.epoch
    await bench.store.close()
    connection = sqlite3.connect(tmp_path / "store.db")
    # The first version made everything but these tables.
    for table in ("state", "news", "nodes", "connections", "evictions", "presence"):
        connection.execute(f"DROP TABLE {table}")
    for table in ("notices", "answers"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    bench = await start(tmp_path, clock)
    await bench.store.state.put("t", "k", "v", 60)
    assert (await bench.append("a")).position.offset == 4
    assert (await bench.read("a")).top.epoch == epoch
    await bench.store.close()
    connection = sqlite3.connect(tmp_path / "store.db")
    assert connection.execute("PRAGMA user_version").fetchone() == (4,)
    connection.close()


async def test_a_file_without_the_table_that_its_version_has_is_refused(
    tmp_path, clock
):
    await (await start(tmp_path, clock)).store.close()
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("DROP TABLE state")
    connection.close()
    with pytest.raises(StoreCorrupt, match="lacks tables"):
        await start(tmp_path, clock)


async def test_a_backup_holds_the_entries(tmp_path, clock):
    bench = await start(tmp_path, clock)
    await bench.store.state.put("t", "k", "v", 60)
    settings = StoreSettings(path=str(tmp_path / "store.db"))
    backup(settings, str(tmp_path / "copy.db"))
    await bench.store.state.take("t", "k")
    await bench.store.close()
    restore(settings, str(tmp_path / "copy.db"))
    bench = await start(tmp_path, clock)
    wall = 1_700_000_000.0
    assert await bench.store.state.entries("t") == [StateEntry("k", "v", wall + 60)]
    await bench.store.close()


async def test_a_locked_database_gives_a_transient_error(tmp_path, clock):
    bench = await start(tmp_path, clock, lock_timeout=0.1)
    await bench.store.state.put("t", "k", "v", 60)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await bench.store.state.put("t", "other", "v", 60)
    with pytest.raises(StoreUnavailable, match="locked"):
        await bench.store.state.take("t", "k")
    assert [kept.key for kept in await bench.store.state.entries("t")] == ["k"]
    other.execute("ROLLBACK")
    other.close()
    assert await bench.store.state.take("t", "k") == "v"
    await bench.store.close()


async def test_a_caller_that_gives_up_does_not_stop_the_work(tmp_path, clock):
    bench = await start(tmp_path, clock)
    task = asyncio.create_task(bench.store.state.put("t", "k", "v", 60))
    await asyncio.sleep(0)  # the work is queued
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await bench.store.state.take("t", "k") == "v"
    await bench.store.close()

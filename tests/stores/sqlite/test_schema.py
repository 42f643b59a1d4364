"""Opening the SQLite store: what it refuses, and that it leaves that alone."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import pytest
import structlog

from service.core.errors import StartupError, StoreCorrupt, StoreInUse, StoreVersion
from service.core.model import Channel
from service.settings import StoreSettings
from service.stores.sqlite.store import SqliteStore
from tests.stores.sqlite.support import publisher
from tests.stores.support import CHAT, Bench, on_disk


async def start(tmp_path, clock, **settings):
    return await Bench(on_disk(tmp_path, clock, **settings), clock).start()


async def refused(tmp_path, clock, kind):
    """Check that opening fails with one line and changes nothing; return the line."""
    path = tmp_path / "store.db"
    before = path.read_bytes()
    with pytest.raises(StartupError) as caught:
        await start(tmp_path, clock)
    assert path.read_bytes() == before
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert "store.db" in str(caught.value)
    return str(caught.value)


async def make(tmp_path, clock, count=3):
    bench = await start(tmp_path, clock)
    await bench.fill("a", count)
    await bench.store.close()


async def test_closing_leaves_one_file_and_its_lock(tmp_path, clock):
    await make(tmp_path, clock)
    assert sorted(os.listdir(tmp_path)) == ["store.db", "store.db.lock"]


@pytest.mark.parametrize(
    "content", [b"\x00" * 4096, b"not a database", b"SQLite format 3\x00" + b"x" * 999]
)
async def test_a_file_that_is_no_database_is_left_alone(tmp_path, clock, content):
    (tmp_path / "store.db").write_bytes(content)
    await refused(tmp_path, clock, StoreCorrupt)


async def test_a_cut_off_file_is_left_alone(tmp_path, clock):
    await make(tmp_path, clock)
    path = tmp_path / "store.db"
    path.write_bytes(path.read_bytes()[:5000])
    await refused(tmp_path, clock, StoreCorrupt)


async def test_a_damaged_page_is_found_and_left_alone(tmp_path, clock):
    await make(tmp_path, clock, 50)
    path = tmp_path / "store.db"
    content = bytearray(path.read_bytes())
    page = 4096
    for start_of in range(page, len(content), page):
        content[start_of : start_of + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert "damaged" in await refused(tmp_path, clock, StoreCorrupt)


async def test_another_programs_database_is_left_alone(tmp_path, clock):
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("CREATE TABLE cars (name TEXT)")
    connection.close()
    assert "another program" in await refused(tmp_path, clock, StoreCorrupt)


async def test_a_store_without_its_tables_is_left_alone(tmp_path, clock):
    await make(tmp_path, clock)
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("DROP TABLE idempotency")
    connection.close()
    assert "lacks tables" in await refused(tmp_path, clock, StoreCorrupt)


async def test_a_newer_schema_is_refused(tmp_path, clock):
    await make(tmp_path, clock)
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("PRAGMA user_version = 5")
    connection.close()
    assert "schema 5" in await refused(tmp_path, clock, StoreVersion)


async def test_a_refused_store_is_not_locked(tmp_path, clock):
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database")
    await refused(tmp_path, clock, StoreCorrupt)
    path.unlink()
    await make(tmp_path, clock)


async def test_an_empty_file_and_an_empty_database_are_a_first_start(tmp_path, clock):
    path = tmp_path / "store.db"
    path.touch()
    await make(tmp_path, clock)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")  # where a kill may leave us
    connection.close()
    assert path.stat().st_size
    await make(tmp_path, clock)


async def test_a_missing_directory_is_named(tmp_path, clock):
    with pytest.raises(StartupError, match="No such file or directory"):
        await start(tmp_path / "missing", clock)


async def test_a_directory_that_is_none_is_named(tmp_path, clock):
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="Not a directory"):
        await start(tmp_path / "file", clock)


async def test_a_directory_that_cannot_be_written_is_named(tmp_path, clock):
    directory = tmp_path
    if os.getuid() == 0:
        directory = Path("/sys")  # the superuser may write anywhere else
    tmp_path.chmod(0o500)
    with pytest.raises(StartupError, match=r"cannot be opened: .*store\.db\.lock"):
        await start(directory, clock)
    tmp_path.chmod(0o700)


async def test_a_directory_in_place_of_the_file_is_named(tmp_path, clock):
    (tmp_path / "store.db").mkdir()
    with pytest.raises(StartupError, match=r"store\.db"):
        await start(tmp_path, clock)


async def test_a_second_store_in_this_process_is_refused(tmp_path, clock):
    bench = await start(tmp_path, clock)
    with pytest.raises(StoreInUse, match="several workers"):
        await start(tmp_path, clock)
    assert (await bench.append("a")).position.offset == 1
    await bench.store.close()
    await make(tmp_path, clock)


async def test_a_second_process_is_refused_until_the_first_ends(tmp_path, clock):
    first = await publisher(tmp_path)
    with pytest.raises(StoreInUse, match="several workers"):
        await start(tmp_path, clock)
    first.kill()
    await first.wait()
    bench = await start(tmp_path, clock)
    await bench.store.close()


@pytest.mark.requirement("R49")
async def test_a_start_waits_until_the_file_is_free(tmp_path, clock):
    first = await start(tmp_path, clock)
    with structlog.testing.capture_logs() as logged:
        second = on_disk(tmp_path, clock, open_timeout=60.0)
        starting = asyncio.create_task(second.start(lambda committed: None))
        while not logged:
            await asyncio.sleep(0.01)
        # What the first one accepts meanwhile is there when the second has opened it.
        assert (await first.append("a")).position.offset == 1
        assert not starting.done()
        await first.store.close()
        await starting
    assert [line["event"] for line in logged] == [
        "waiting for the store: another process has it open",
        "the store is free",
    ]
    assert logged[0]["path"] == str(tmp_path / "store.db")
    assert (await second.read(Channel("a"), CHAT, None, 0)).top.offset == 1
    await second.close()


@pytest.mark.requirement("R49")
@pytest.mark.parametrize("stopped", [True, False])
async def test_a_start_waits_no_longer_than_it_may(tmp_path, clock, stopped):
    first = await start(tmp_path, clock)
    stopping = asyncio.Event()
    second = SqliteStore(
        StoreSettings(
            path=str(tmp_path / "store.db"), open_timeout=3600.0 if stopped else 0.2
        ),
        clock,
        stopping=stopping,
    )
    starting = asyncio.create_task(second.start(lambda committed: None))
    if stopped:
        await asyncio.sleep(0)
        stopping.set()
    async with asyncio.timeout(10):
        with pytest.raises(StoreInUse):
            await starting
    assert (await first.append("a")).position.offset == 1
    await first.store.close()

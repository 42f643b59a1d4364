"""Faults of the file: repeats, the breaker, its probe and cleanup, in virtual time.

A thread waits for the lock in real time, for 0.05 s; all pauses are the clock's.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
from pathlib import Path

import pytest

from service.core.errors import StoreUnavailable
from service.core.model import Draft
from service.core.ports import NO_HISTORY
from service.settings import StoreSettings
from service.stores.sqlite.log import Log
from service.stores.sqlite.schema import MEMORY, Files, open_files
from service.stores.sqlite.store import SqliteStore
from service.stores.sqlite.writer import StoreThread
from tests.stores.sqlite.support import advance_to_next, until
from tests.stores.support import CHAT, Bench


@pytest.fixture
def tries(monkeypatch):
    """Return the sizes of the batches that the database was asked to store."""
    sizes = []
    commit = Log.commit

    def counted(log, appends, now):
        sizes.append(len(appends))
        return commit(log, appends, now)

    monkeypatch.setattr(Log, "commit", counted)
    return sizes


async def opened(bench, other, *done):
    """Lock the file, and let two batches open the breaker; return all outcomes."""
    if not other.in_transaction:
        other.execute("BEGIN IMMEDIATE")
    done = [*done, bench.append("opening", idempotency_key="opening")]
    assert 0.5 <= await advance_to_next(bench.clock) <= 0.6
    await until(lambda: done[0].done())
    done.append(bench.append("opening", idempotency_key="more"))
    outcomes = await asyncio.gather(*done, return_exceptions=True)
    assert bench.store.breaker.state == "open"
    return outcomes


def refused(outcome):
    return isinstance(outcome, StoreUnavailable) and "locked" in str(outcome)


@pytest.mark.requirement("R14", "B32", "B34")
async def test_a_batch_is_tried_twice_and_then_a_temporary_failure(bench, other, tries):
    await bench.fill("a", 3)
    tries.clear()
    other.execute("BEGIN IMMEDIATE")
    done = [bench.append("a", idempotency_key=str(n)) for n in range(5)]
    outcomes = await opened(bench, other, *done)
    assert [refused(outcome) for outcome in outcomes] == [True] * 7
    assert tries == [6, 6, 1]
    assert "locked" in bench.store.fault()
    assert await bench.offsets("a") == [1, 2, 3]  # reading works all the while
    assert bench.told_of("a") == [1, 2, 3]


@pytest.mark.requirement("R14", "B33")
async def test_a_lock_that_ends_between_two_tries_is_not_noticed(bench, other, tries):
    other.execute("BEGIN IMMEDIATE")
    done = [bench.append("a", idempotency_key=str(n)) for n in range(5)]
    await until(lambda: tries and bench.clock.pending[0] < bench.clock.now() + 1)
    other.execute("ROLLBACK")
    assert not any(future.done() for future in done)
    await advance_to_next(bench.clock)
    outcomes = await asyncio.gather(*done)
    assert [outcome.position.offset for outcome in outcomes] == [1, 2, 3, 4, 5]
    assert tries == [5, 5]
    assert bench.told_of("a") == await bench.offsets("a") == [1, 2, 3, 4, 5]
    assert bench.store.breaker.openings == 0


@pytest.mark.requirement("R15")
async def test_a_success_resets_the_count(bench, other):
    for n in range(1, 6):  # a fault, and then a success, five times
        other.execute("BEGIN IMMEDIATE")
        done = bench.append("a")
        await until(lambda: bench.clock.pending[0] < bench.clock.now() + 1)
        other.execute("ROLLBACK")
        await advance_to_next(bench.clock)
        assert (await done).position.offset == n
    assert (bench.store.breaker.state, bench.store.breaker.openings) == ("closed", 0)


@pytest.mark.requirement("R15")
async def test_mistakes_of_callers_never_touch_it(bench):
    for _ in range(5):
        outcomes = await asyncio.gather(
            bench.append("a", "\ud800"),
            bench.append("a", version=2**63),
            return_exceptions=True,
        )
        assert not any(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert (bench.store.breaker.state, bench.store.breaker.openings) == ("closed", 0)


@pytest.mark.requirement("R15", "R23", "B37")
async def test_while_it_is_open_nothing_is_asked_of_the_file(bench, other, tries):
    await opened(bench, other)
    other.execute("ROLLBACK")  # the file could be written, but nobody asks
    tries.clear()
    for _ in range(3):
        assert refused(*await asyncio.gather(bench.append("a"), return_exceptions=True))
    with pytest.raises(StoreUnavailable, match="locked"):
        await bench.store.remove("a")
    with pytest.raises(StoreUnavailable, match="locked"):
        await bench.store.state.put("ticket", "a", "b", 60.0)
    assert tries == []
    # What nothing is stored of goes on, and so do reads.
    assert (await bench.append("live", history=NO_HISTORY)).position == (0, "")
    assert bench.told_of("live") == [0]
    assert await bench.offsets("a") == []
    # One probe, and everything works again; the publishers repeat what they kept.
    assert bench.store.breaker.state == "open"
    bench.clock.advance(0.6)
    await until(lambda: bench.store.breaker.closed)
    assert bench.store.fault() is None
    assert (await bench.append("a", idempotency_key="0")).position.offset == 1
    assert (await bench.append("a", idempotency_key="0")).fresh is False
    assert bench.store.breaker.recoveries == 1


@pytest.mark.requirement("R15")
async def test_a_probe_that_fails_keeps_it_open_for_twice_as_long(
    bench, other, monkeypatch
):
    release = threading.Event()
    probe = Log.probe
    monkeypatch.setattr(Log, "probe", lambda log: release.wait(30) and probe(log))
    await opened(bench, other)
    bench.clock.advance(0.6)
    assert bench.store.breaker.state == "half-open"
    # What comes while the probe has the thread does not wait for it.
    assert refused(*await asyncio.gather(bench.append("a"), return_exceptions=True))
    with pytest.raises(StoreUnavailable, match="locked"):
        await bench.store.remove("a")
    release.set()
    await until(lambda: bench.store.breaker.state == "open")
    other.execute("ROLLBACK")
    bench.clock.advance(0.9)
    assert bench.store.breaker.state == "open"
    bench.clock.advance(0.2)
    await until(lambda: bench.store.breaker.closed)
    assert bench.store.breaker.openings == 1


@pytest.mark.requirement("R15")
async def test_what_waits_when_it_opens_does_not_wait_for_the_lock(
    tmp_path, clock, tries
):
    settings = StoreSettings(path=str(tmp_path / "store.db"), lock_timeout=0.05)
    bench = await Bench(SqliteStore(settings, clock, batch=2), clock).start()
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    done = [bench.append("a") for _ in range(40)]
    live = [bench.append("live", history=NO_HISTORY) for _ in range(40)]
    outcomes = await opened(bench, other, *done)
    assert all(refused(outcome) for outcome in outcomes)
    # One batch was tried twice, the next one once; of the other eighteen none.
    assert tries[:3] == [2, 2, 2]
    assert sum(tries[3:]) == 40  # without history
    assert [outcome.fresh for outcome in await asyncio.gather(*live)] == [True] * 40
    other.close()
    await bench.store.close()


async def test_writes_that_are_not_appends_count_too(bench, other):
    other.execute("BEGIN IMMEDIATE")
    for _ in range(3):
        assert bench.store.breaker.closed
        with pytest.raises(StoreUnavailable):
            await bench.store.state.put("ticket", "a", "b", 60.0)
    assert bench.store.breaker.state == "open"
    other.execute("ROLLBACK")
    bench.clock.advance(0.6)
    await until(lambda: bench.store.breaker.closed)
    await bench.store.state.put("ticket", "a", "b", 60.0)


async def test_closing_between_two_tries_fails_what_waits_and_ends(bench, other, tries):
    other.execute("BEGIN IMMEDIATE")
    done = [bench.append("a") for _ in range(3000)]
    await until(lambda: tries and bench.clock.pending[0] < bench.clock.now() + 1)
    await bench.store.close()
    assert all(isinstance(future.exception(), StoreUnavailable) for future in done)
    assert len(tries) == 1
    assert bench.clock.pending == []


@pytest.mark.requirement("R15")
async def test_listeners_are_told_once_of_each_opening_and_recovery(bench, other):
    told = []
    bench.store.breaker.listeners.append(told.append)
    for turn in (1, 2):
        await opened(bench, other)
        bench.clock.advance(0.6)
        await until(lambda: bench.store.breaker.state == "open")
        other.execute("ROLLBACK")
        bench.clock.advance(1.1)
        await until(lambda: bench.store.breaker.closed)
        assert told == [True, False] * turn


# The cleanup


def spoil_log(path: Path) -> None:
    """Let every write of the store's writer to its log fail, for ever: EBADF.

    The writer is opened first, so it has the lower descriptor.
    """
    log = f"{path}-wal"
    found = sorted(
        int(name)
        for name in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{name}") == log
    )
    assert len(found) == 2
    readable = os.open(log, os.O_RDONLY)
    os.dup2(readable, found[0], inheritable=False)
    os.close(readable)


@pytest.mark.requirement("R16")
async def test_a_connection_that_is_broken_for_good_is_opened_anew(bench, tmp_path):
    await bench.fill("a", 3)
    spoil_log(tmp_path / "store.db")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="SQLITE_IOERR_WRITE"):
            await bench.append("a")
    assert bench.store.breaker.state == "open"
    bench.clock.advance(0.6)
    await until(lambda: bench.store.breaker.state == "open")  # the probe failed
    bench.clock.advance(0.399)
    with pytest.raises(StoreUnavailable, match="SQLITE_IOERR_WRITE"):
        await bench.append("a")
    bench.clock.advance(0.001)  # the cleanup, a second after the opening
    bench.clock.advance(0.7)
    await until(lambda: bench.store.breaker.closed)
    await bench.fill("a", 2)
    assert bench.told_of("a") == await bench.offsets("a") == [1, 2, 3, 4, 5]
    await bench.sweep()
    await bench.store.state.put("ticket", "a", "b", 60.0)
    assert await bench.store.state.take("ticket", "a") == "b"
    await bench.append("a", "{}", info='"me"')
    assert await bench.store.erase('"me"') == 1


@pytest.mark.requirement("R16")
async def test_no_cleanup_after_a_recovery(bench, other, monkeypatch):
    anew = []
    monkeypatch.setattr(Files, "reopen_writer", anew.append)
    await opened(bench, other)
    other.execute("ROLLBACK")
    bench.clock.advance(0.6)
    await until(lambda: bench.store.breaker.closed)
    bench.clock.advance(10.0)
    await bench.append("a")
    assert anew == []


def test_only_the_same_file_is_opened_anew(tmp_path):
    settings = StoreSettings(path=str(tmp_path / "store.db"))
    files = open_files(settings, random.Random(1))
    before = files.writer
    assert files.reopen_writer() and files.writer is not before
    with pytest.raises(sqlite3.ProgrammingError):
        before.execute("SELECT 1")
    present = files.writer
    os.rename(settings.path, tmp_path / "moved")
    assert not files.reopen_writer()  # there is none, and none is made
    assert not os.path.exists(settings.path)
    open_files(StoreSettings(path=str(tmp_path / "new")), random.Random(2)).close()
    os.rename(tmp_path / "new", settings.path)
    assert not files.reopen_writer()  # it is another one
    assert files.writer is present
    os.unlink(settings.path)
    os.rename(tmp_path / "moved", settings.path)
    assert files.reopen_writer()
    files.close()
    memory = open_files(StoreSettings(path=MEMORY), random.Random(3))
    assert not memory.reopen_writer()
    memory.close()


async def test_the_lock_timeout_is_that_of_the_settings_after_repeats():
    locked = sqlite3.OperationalError("database is locked")
    locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
    waits, faults, failed = [], [], []

    def commit(appends):
        raise locked

    def faulted(error, tries):
        faults.append(tries)
        thread.decide(0.5 if tries < 2 else None)

    thread = StoreThread(
        "write",
        asyncio.get_running_loop(),
        commit=commit,
        wait_for_lock=waits.append,
        faulted=faulted,
        ended=lambda error: None,
        committed=lambda result: None,
        failed=lambda appends, error: failed.append((len(appends), error)),
        died=lambda error: None,
        batch=8,
        needs_store=lambda draft, history: True,
    )
    thread.start()
    thread.put(("a", Draft("1"), CHAT, lambda outcome: None, 1))
    await thread.stop()
    assert (faults, waits, failed) == ([0, 1, 2], [0.5, 0.5, None], [(1, locked)])

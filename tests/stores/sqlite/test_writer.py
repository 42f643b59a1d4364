"""The writer's thread when writing fails: full, dead, or given invalid data."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys

import pytest

from service.core.errors import StoreError, StoreUnavailable
from service.core.ports import History
from tests.clock import VirtualClock
from tests.stores.sqlite.support import ROOT
from tests.stores.support import Bench, on_disk


async def test_a_lock_that_is_let_go_in_time_costs_nothing(tmp_path, clock):
    bench = await Bench(on_disk(tmp_path, clock, lock_timeout=60.0), clock).start()
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    done = [bench.append("a") for _ in range(5)]
    await bench.read("a")
    assert not any(future.done() for future in done)
    other.execute("ROLLBACK")
    other.close()
    outcomes = await asyncio.gather(*done)
    assert [o.position.offset for o in outcomes] == [1, 2, 3, 4, 5]
    await bench.store.close()


async def test_closing_while_locked_fails_what_waits_and_ends(bench, other):
    other.execute("BEGIN IMMEDIATE")
    done = [bench.append("a", history=History(10**4, 60.0)) for _ in range(3000)]
    await bench.store.close()
    outcomes = [future.exception() for future in done]
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)


FULL = """
import asyncio, resource, sys
from service.core.errors import StoreUnavailable
from tests.clock import VirtualClock
from tests.stores.support import Bench, on_disk
from service.core.ports import History
from pathlib import Path

HISTORY = History(10**6, 1e6)
DATA = '"' + "x" * 2000 + '"'

async def main():
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    clock = VirtualClock()
    bench = await Bench(on_disk(Path(sys.argv[1]), clock), clock).start()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    acknowledged, failed = [], 0
    for _ in range(100):
        done = [bench.append("a", DATA, HISTORY) for _ in range(10)]
        for outcome in await asyncio.gather(*done, return_exceptions=True):
            if isinstance(outcome, StoreUnavailable):
                failed += 1
            else:
                acknowledged.append(outcome.position.offset)
    assert failed and acknowledged, (failed, acknowledged)
    assert acknowledged == list(range(1, len(acknowledged) + 1)), acknowledged
    assert bench.store.fault() is not None
    assert (await bench.read("a", history=HISTORY)).top.offset == len(acknowledged)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    clock.advance(0.7)  # the probe
    while bench.store.fault() is not None:
        await asyncio.sleep(0.01)
    outcome = await bench.append("a", DATA, HISTORY)
    assert outcome.position.offset == len(acknowledged) + 1
    assert bench.store.fault() is None
    await bench.store.close()
    bench = await Bench(on_disk(Path(sys.argv[1]), clock), clock).start()
    page = await bench.read("a", history=HISTORY)
    assert [p.offset for p in page.publications] == acknowledged + [
        len(acknowledged) + 1
    ]
    await bench.store.close()
    print(len(acknowledged), failed)

asyncio.run(main())
"""


def test_a_full_disk_is_a_temporary_failure(tmp_path):
    """A limit on the size of files stands for the full disk: write() fails."""
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


class Deadly(VirtualClock):
    """A clock that, from some moment on, ends the thread that asks it."""

    deadly = False

    def wall(self):
        if self.deadly:
            raise SystemExit("the clock struck")
        return super().wall()


@pytest.mark.requirement("L4")
async def test_a_dead_writer_fails_every_append_and_says_so(tmp_path):
    clock = Deadly()
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    await bench.fill("a", 3)
    clock.deadly = True
    done = [bench.append("a") for _ in range(2000)]
    for outcome in await asyncio.gather(*done, return_exceptions=True):
        assert isinstance(outcome, StoreUnavailable)
        assert "store-writer died" in str(outcome)
    assert "store-writer died" in bench.store.fault()
    for call in (bench.append("a"), bench.read("b"), bench.store.remove("a")):
        with pytest.raises(StoreUnavailable):
            await call
    await bench.store.close()
    clock.deadly = False
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    assert (await bench.append("a")).position.offset == 4
    await bench.store.close()


@pytest.mark.parametrize(
    "spoilt",
    [
        {"data": "\ud800"},
        {"data": "1", "idempotency_key": "\udc00"},
        {"data": "1", "version": 2**63},
        {"data": None},
        {"data": "1", "tags": object()},
    ],
)
async def test_a_draft_that_cannot_be_stored_fails_alone(bench, spoilt):
    done = [
        bench.append("a", **(spoilt if n == 5 else {"data": str(n)})) for n in range(10)
    ]
    outcomes = await asyncio.gather(*done, return_exceptions=True)
    assert isinstance(outcomes[5], StoreError)
    del outcomes[5]
    assert [o.position.offset for o in outcomes] == list(range(1, 10))
    assert bench.store.fault() is None
    assert bench.told_of("a") == list(range(1, 10))

"""Benchmark of the stores: durable publications a second, and their latency.

    python -m benchmarks.bench_store [--json FILE] [--check] [--seconds N]

Two measurements:

* Publishers that append to one channel and wait, each for itself (1, 32 and 128), on
  every store: SQLite in memory and on disk, DynamoDB on ministack. ``publishers.py``
  describes the rows. DynamoDB is skipped, with a line, where ministack is missing
  (``tests/tools/install``), unless ``--endpoint URL`` names a running emulator.
* SQLite on disk against the rival that it cannot beat: a loop over sqlite3 that writes
  the same rows into the same tables in batches of the same size, and does nothing else
  (no queue, no thread, no event loop, no objects, no listener). Measured in one run as
  raw, store, raw, so that a machine that changes its speed meanwhile shows. ``filled``:
  the writer always finds more waiting than a batch holds; the batch size is set. This
  is what a busy server does. ``turns``: a batch is appended, and nothing more until all
  of it is acknowledged. This is mostly the way from the loop to the thread and back.

``--check`` fails when a filled store is below half of raw, or when on DynamoDB 32
publishers of one process get less than 30 times what they get with a transaction for
each publication (or that could not be measured). ``--json FILE`` keeps the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import publishers
from service.core.clock import SystemClock
from service.core.model import Channel, Draft
from service.core.ports import History
from service.settings import StoreSettings
from service.stores.sqlite.schema import open_files
from service.stores.sqlite.store import SqliteStore

DATA = '{"text":"' + "x" * 200 + '"}'  # a chat message
HISTORY = History(1_000_000, 3600.0)  # nothing is trimmed: raw does not trim either
CHANNEL = Channel("chat:benchmark")
BATCHES = (1, 8, 64)
FLOOR = 0.5  # of raw


def settings(directory: str, durability: str) -> StoreSettings:
    return StoreSettings(
        path=f"{directory}/store.db", durability=durability, queue_size=1 << 30
    )


def raw(batch: int, seconds: float, durability: str) -> float:
    """Return rows a second of the plain loop."""
    with tempfile.TemporaryDirectory(dir=PLACE) as directory:
        files = open_files(settings(directory, durability), random.Random(1))
        execute, executemany = files.writer.execute, files.writer.executemany
        execute(
            "INSERT INTO channels VALUES (1, ?, 'e', 0, 0, 1, 1, 1, 0, '')", (CHANNEL,)
        )
        count = 0
        begin = time.perf_counter()
        end = begin + seconds
        while time.perf_counter() < end:
            now = int(time.time() * 1000)
            execute("BEGIN IMMEDIATE")
            executemany(
                "INSERT INTO publications VALUES (?, 1, ?, ?, ?, ?, ?)",
                [
                    (n, n, now, DATA, None, None)
                    for n in range(count + 1, count + batch + 1)
                ],
            )
            execute("COMMIT")
            count += batch
        elapsed = time.perf_counter() - begin
        files.close()
    return count / elapsed


async def measure(work, durability: str, batch: int = 512) -> tuple[float, float]:
    """Return publications a second, and per commit, of *work* on a fresh store."""
    told: list[int] = []
    with tempfile.TemporaryDirectory(dir=PLACE) as directory:
        store = SqliteStore(settings(directory, durability), SystemClock(), batch=batch)
        await store.start(lambda committed: told.append(len(committed)))
        begin = time.perf_counter()
        count = await work(store)
        elapsed = time.perf_counter() - begin
        await store.close()
    if sum(told) != count:
        raise AssertionError(f"{sum(told)} committed of {count}")
    return count / elapsed, statistics.mean(told)


def filled(batch: int, seconds: float):
    """Keep eight batches waiting, until the time is up; then drain."""

    async def work(store: SqliteStore) -> int:
        drained = asyncio.get_running_loop().create_future()
        end = time.perf_counter() + seconds
        draft = Draft(DATA)
        append = store.append
        waiting = count = 0

        def done(outcome: object) -> None:
            nonlocal waiting, count
            waiting -= 1
            count += 1
            if waiting <= 4 * batch and not drained.done():
                if time.perf_counter() < end:
                    for _ in range(4 * batch):
                        append(CHANNEL, draft, HISTORY, done)
                    waiting += 4 * batch
                elif not waiting:
                    drained.set_result(None)

        waiting = 8 * batch
        for _ in range(8 * batch):
            append(CHANNEL, draft, HISTORY, done)
        await drained
        return count

    return work


def turns(batch: int, seconds: float):
    async def work(store: SqliteStore) -> int:
        loop = asyncio.get_running_loop()
        end = time.perf_counter() + seconds
        draft = Draft(DATA)
        count = 0
        while time.perf_counter() < end:
            last = loop.create_future()
            for _ in range(batch - 1):
                store.append(CHANNEL, draft, HISTORY, lambda outcome: None)
            store.append(CHANNEL, draft, HISTORY, last.set_result)
            await last
            count += batch
        return count

    return work


def compare(name: str, work, batch: int, seconds: float, durability: str) -> dict:
    before = raw(batch, seconds, durability)
    rate, per_commit = run(measure(work(batch, seconds), durability, batch))
    after = raw(batch, seconds, durability)
    ratio = 2 * rate / (before + after)
    print(
        f"{name:<8} {batch:>3} a batch: {rate:>9,.0f}/s, {per_commit:>5.1f} a commit; "
        f"raw {before:>9,.0f} and {after:>9,.0f}/s; ratio {ratio:.2f}",
        flush=True,
    )
    return {
        "kind": name,
        "batch": batch,
        "rate": rate,
        "per_commit": per_commit,
        "raw": [before, after],
        "ratio": ratio,
    }


def machine() -> dict:
    try:
        import uvloop

        loop = f"uvloop {uvloop.__version__}"
    except ImportError:
        loop = "asyncio"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line for line in lines if line.startswith("model name")), ": ?")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "loop": loop,
        "system": platform.platform(),
        "processor": model.split(":")[1].strip(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def run(coroutine):
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each part")
    parser.add_argument("--durability", default="process", choices=["process", "power"])
    parser.add_argument("--directory", help="where the files are made")
    parser.add_argument("--endpoint", help="of a running emulator of DynamoDB")
    options = parser.parse_args()
    global PLACE
    PLACE = options.directory
    seconds, durability = options.seconds, options.durability

    about = machine()
    about["command"] = f"python -m benchmarks.bench_store --seconds {seconds:g}"
    for name, value in about.items():
        print(f"{name}: {value}")
    results = []
    for name, work in (("filled", filled), ("turns", turns)):
        for batch in BATCHES:
            results.append(compare(name, work, batch, seconds, durability))
    rows = publishers.measured(run, seconds, durability, PLACE, options.endpoint)
    factor = publishers.factor(rows)
    if factor is not None:
        print(f"at 32 publishers batching is {factor:.0f} times as fast as alone")
    if options.json:
        about["durability"] = durability
        report = {"about": about, "results": results, "publishers": rows}
        options.json.write_text(json.dumps(report))
    return 1 if options.check and missed(results, factor) else 0


def missed(results: list[dict], factor: float | None) -> bool:
    """Print the targets that were missed; return whether there are any."""
    lines = [
        f"too slow: {row['ratio']:.2f} of raw at batch {row['batch']}, below {FLOOR}"
        for row in results
        if row["kind"] == "filled" and row["ratio"] < FLOOR
    ]
    if factor is None:
        lines.append("not checked, so failed: batching, without DynamoDB")
    elif factor < publishers.FACTOR:
        lines.append(f"too slow: batching, below {publishers.FACTOR} times alone")
    for line in lines:
        print(line)
    return bool(lines)


PLACE: str | None = None

if __name__ == "__main__":
    sys.exit(main())

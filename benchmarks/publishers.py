"""Load of bench_store: publishers that append to one channel, each waiting for itself.

* ``sqlite, memory`` and ``sqlite, disk``: what waits goes into one commit.
* ``dynamodb``: the store as it is; what waits goes into one transaction.
* ``dynamodb, alone``: each publisher has a store of its own, as if it were a process,
  so each publication is a transaction that competes for the channel's HEAD.
* ``dynamodb, four``: four stores, as in four processes, share the publishers.

Those of DynamoDB run on one ministack, whose transactions take some milliseconds and
are done one at a time, so the figures compare designs; they say nothing of DynamoDB's
own speed.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time

import pytest

from service.core.clock import SystemClock
from service.core.errors import StoreError
from service.core.model import Channel, Draft
from service.core.ports import History
from service.settings import DynamodbSettings, StoreSettings
from service.stores.dynamodb import table
from service.stores.dynamodb.client import opened
from service.stores.dynamodb.store import DynamodbStore
from service.stores.sqlite.store import SqliteStore
from tests.harness import emulators

DATA = '{"text":"' + "x" * 290 + '"}'  # a chat message
HISTORY = History(1000, 3600.0)
CHANNEL = Channel("chat:benchmark")
PUBLISHERS = (1, 32, 128)
FACTOR = 30  # of a transaction for each publication, at 32 publishers


class Result:
    """Counts of one run; times in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.elapsed = 0.0
        self.told: list[int] = []  # publications of each commit
        self.failed = 0

    def listen(self, committed) -> None:
        self.told.append(len(committed))

    def figures(self, calls: int | None = None) -> dict:
        """Return a row: rates a second, times in seconds, the rest a publication."""
        count = len(self.times)
        times = sorted(self.times)
        return {
            "rate": count / self.elapsed,
            "p50": statistics.median(times),
            "p99": times[int(0.99 * (len(times) - 1))],
            "per_commit": count / len(self.told),
            "calls": None if calls is None else calls / count,
            "failed": self.failed,
        }


async def publish(store, end: float, result: Result) -> None:
    loop = asyncio.get_running_loop()
    while (begun := time.perf_counter()) < end:
        future = loop.create_future()
        store.append(CHANNEL, Draft(DATA), HISTORY, future.set_result)
        if isinstance(await future, StoreError):
            result.failed += 1
        else:
            result.times.append(time.perf_counter() - begun)


async def load(stores, publishers: int, seconds: float, result: Result) -> None:
    """Share the publishers between the stores until the time is up."""
    begun = time.perf_counter()
    await asyncio.gather(
        *[
            publish(stores[n % len(stores)], begun + seconds, result)
            for n in range(publishers)
        ]
    )
    result.elapsed = time.perf_counter() - begun


async def sqlite(settings: StoreSettings, publishers: int, seconds: float) -> dict:
    """Measure a fresh store of one process."""
    result = Result()
    store = SqliteStore(settings, SystemClock())
    await store.start(result.listen)
    await load([store], publishers, seconds, result)
    await store.close()
    if sum(result.told) != len(result.times) or result.failed:
        raise AssertionError(f"{sum(result.told)} committed of {len(result.times)}")
    return result.figures()


async def dynamodb(
    settings: DynamodbSettings, publishers: int, seconds: float, *, stores: int
) -> dict:
    """Measure so many stores on a fresh table."""
    clock = SystemClock()
    async with opened(settings, clock) as client:
        await table.create(client, settings)
    result = Result()
    every = [DynamodbStore(settings, StoreSettings(), clock) for _ in range(stores)]
    for store in every:
        await store.start(result.listen)
    calls = sum(store.client.attempts for store in every)
    await load(every, publishers, seconds, result)
    calls = sum(store.client.attempts for store in every) - calls
    for store in every:
        await store.close()
    reader = DynamodbStore(settings, StoreSettings(), clock)  # has nothing in memory
    await reader.start(lambda committed: None)
    stored = await reader.read(CHANNEL, HISTORY, None, 0)
    await reader.close()
    if stored.top.offset < len(result.times):
        raise AssertionError(f"{stored.top.offset} stored of {len(result.times)}")
    return result.figures(calls)


def on_sqlite(run, seconds: float, durability: str, place: str | None):
    """Yield a row for each number of publishers, in memory and then on disk."""
    for name in ("sqlite, memory", "sqlite, disk"):
        for publishers in PUBLISHERS:
            with tempfile.TemporaryDirectory(dir=place) as directory:
                path = ":memory:" if name.endswith("memory") else f"{directory}/store"
                settings = StoreSettings(path=path, durability=durability)
                found = run(sqlite(settings, publishers, seconds))
            yield {"store": name, "publishers": publishers, **found}


def on_dynamodb(run, seconds: float, endpoint: str):
    """Yield a row for each design and number of publishers, on a running emulator."""
    for publishers in PUBLISHERS:
        for kind, stores in ((", alone", publishers), (", four", 4), ("", 1)):
            if kind and (publishers > 32 if stores > 4 else publishers < stores):
                continue  # 128 alone hardly move any more; four want four
            settings = DynamodbSettings(
                table=f"bench-{os.getpid()}-{kind[2:] or 'one'}-{publishers}",
                region="us-east-1",
                endpoint=endpoint,
                connections=1 if kind == ", alone" else 16,
            )
            found = run(dynamodb(settings, publishers, seconds, stores=stores))
            yield {"store": f"dynamodb{kind}", "publishers": publishers, **found}


def emulator() -> str | None:
    """Start ministack and return its address; None, with a line, if it is missing."""
    try:
        found = emulators.running("ministack")
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        print(f"DynamoDB skipped: {missing.msg}", flush=True)
        return None
    os.environ.update(found.credentials)
    return found.endpoint


def measured(
    run, seconds: float, durability: str, place: str | None, endpoint: str | None
) -> list[dict]:
    """Measure every store, print the rows and return them."""
    rows = []

    def keep(found) -> None:
        for row in found:
            rows.append(row)
            calls = "" if row["calls"] is None else f", {row['calls']:.2f} calls each"
            print(
                f"{row['store']:<15} {row['publishers']:>3} publishers: "
                f"{row['rate']:>7,.0f}/s, p50 {1000 * row['p50']:>7.2f} ms, "
                f"p99 {1000 * row['p99']:>7.2f} ms, {row['per_commit']:>5.1f} a commit"
                f"{calls}, {row['failed']} refused",
                flush=True,
            )

    keep(on_sqlite(run, seconds, durability, place))
    try:
        endpoint = endpoint or emulator()
        if endpoint:
            keep(on_dynamodb(run, seconds, endpoint))
    finally:
        emulators.close_all()
    return rows


def factor(rows: list[dict]) -> float | None:
    """Return how many times as fast batching is, or None if it was not measured."""
    rates = {row["store"]: row["rate"] for row in rows if row["publishers"] == 32}
    if "dynamodb" not in rates:
        return None
    return rates["dynamodb"] / rates["dynamodb, alone"]

"""What does one channel take on DynamoDB, against a transaction for each publication?

Publishers append to one channel and wait, each for itself. ``combiner`` is the store:
what waits goes into one transaction. ``alone`` is the same store with room for one
publication in a batch and no queue between the publishers: each has a store of its own,
as if it were a process, so each publication is a transaction that competes with the
others for the channel's HEAD. ``four`` are four stores, as in four processes, that
share the publishers. All on the same emulator in the same run: its transactions take
some milliseconds and are done one at a time, so the figures compare designs; they say
nothing of DynamoDB's own speed.

Needs ministack (``tests/tools/install``), or ``--endpoint URL``. ``--check`` fails when
at 32 publishers the combiner is below 30 times ``alone``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.bench_store import machine
from service.clock import SystemClock
from service.errors import StoreError
from service.model import Channel, Draft
from service.ports import History
from service.settings import DynamodbSettings, StoreSettings
from service.stores.dynamodb import table
from service.stores.dynamodb.client import opened
from service.stores.dynamodb.store import DynamodbStore
from tests.harness import emulators

DATA = '{"text":"' + "x" * 290 + '"}'  # a chat message
HISTORY = History(1000, 3600.0)
CHANNEL = Channel("chat:benchmark")
PUBLISHERS = (1, 32, 128)
FACTOR = 30  # of `alone`, at 32 publishers


class Result:
    """Counts of one run; times in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.batches = 0
        self.failed = 0


async def publish(store: DynamodbStore, end: float, result: Result) -> None:
    loop = asyncio.get_running_loop()
    while (begun := time.perf_counter()) < end:
        future = loop.create_future()
        store.append(CHANNEL, Draft(DATA), HISTORY, future.set_result)
        if isinstance(await future, StoreError):
            result.failed += 1
        else:
            result.times.append(time.perf_counter() - begun)


async def measure(
    settings: DynamodbSettings, publishers: int, seconds: float, *, stores: int
) -> dict[str, float]:
    clock = SystemClock()
    async with opened(settings, clock) as client:
        await table.create(client, settings)
    result = Result()

    def listen(committed: object) -> None:
        result.batches += 1

    every = [DynamodbStore(settings, StoreSettings(), clock) for _ in range(stores)]
    for store in every:
        await store.start(listen)
    calls = sum(store.client.attempts for store in every)
    begun = time.perf_counter()
    end = begun + seconds
    await asyncio.gather(
        *[publish(every[n % stores], end, result) for n in range(publishers)]
    )
    elapsed = time.perf_counter() - begun
    calls = sum(store.client.attempts for store in every) - calls
    for store in every:
        await store.close()
    reader = DynamodbStore(settings, StoreSettings(), clock)  # has nothing in memory
    await reader.start(listen)
    stored = await reader.read(CHANNEL, HISTORY, None, 0)
    await reader.close()
    count = len(result.times)
    if stored.top.offset < count:
        raise AssertionError(f"{stored.top.offset} stored of {count}")
    times = sorted(result.times)
    return {
        "rate": count / elapsed,
        "p50": statistics.median(times),
        "p99": times[int(0.99 * (len(times) - 1))],
        "batch": count / max(result.batches, 1),
        "calls": calls / count,
        "failed": result.failed,
    }


async def run(options: argparse.Namespace, endpoint: str) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for publishers in PUBLISHERS:
        for name, stores in (("alone", publishers), ("four", 4), ("combiner", 1)):
            if name == "alone" and publishers > 32:
                continue  # it hardly moves any more
            if stores > publishers:
                continue
            settings = DynamodbSettings(
                table=f"bench-{os.getpid()}-{name}-{publishers}",
                region="us-east-1",
                endpoint=endpoint,
                connections=1 if name == "alone" else 16,
            )
            found = await measure(settings, publishers, options.seconds, stores=stores)
            print(
                f"{name:<8} {publishers:>3} publishers: {found['rate']:>7,.0f}/s, "
                f"p50 {1000 * found['p50']:>7.1f} ms, p99 {1000 * found['p99']:>7.1f} "
                f"ms, {found['batch']:>4.1f} a batch, {found['calls']:>5.2f} calls a "
                f"publication, {found['failed']:.0f} refused",
                flush=True,
            )
            results.append({"kind": name, "publishers": publishers, **found})
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each part")
    parser.add_argument("--endpoint", help="of a running emulator")
    options = parser.parse_args()
    about = machine()
    for name, value in about.items():
        print(f"{name}: {value}")
    try:
        emulator = None if options.endpoint else emulators.running("ministack")
        if emulator is not None:
            os.environ.update(emulator.credentials)
        endpoint = options.endpoint or emulator.endpoint
        results = asyncio.run(run(options, endpoint))
    finally:
        emulators.close_all()
    if options.json:
        options.json.write_text(json.dumps({"about": about, "results": results}))
    rates = {(r["kind"], r["publishers"]): r["rate"] for r in results}
    factor = rates["combiner", 32] / rates["alone", 32]
    print(f"at 32 publishers the combiner is {factor:.0f} times as fast")
    if options.check and factor < FACTOR:
        print(f"too slow: below {FACTOR} times")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

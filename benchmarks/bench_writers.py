"""Benchmark of 32 processes that publish to one channel of a DynamoDB table.

    python -m benchmarks.bench_writers [--seconds N] [--processes N]

Each process has the store and the broker of a server and nothing else of one, since so
many servers do not fit on a small machine; each publisher waits for its acknowledgement
before it publishes again. The table is emulated (ministack), so that its own pace
limits all: ``one writer`` is what it takes from a single process, one publication in
each transaction, and the ratio is to that.

``owner killed``: the process that stores for the others gets SIGKILL; the gap is the
longest time without any acknowledgement around that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from itertools import pairwise

from benchmarks.load import describe, percentile
from service.core.clock import SystemClock
from service.stores.dynamodb import table
from service.stores.dynamodb.client import opened
from service.stores.dynamodb.log.items import head_key
from tests.harness.emulators import close_all, running
from tests.harness.valkey import Valkey
from tests.harness.writers import CHANNEL, Writers


async def create(settings) -> None:
    """Make a table."""
    async with opened(settings, SystemClock()) as client:
        await table.create(client, settings)


async def owner(settings) -> str:
    """Return the process that HEAD names."""
    async with opened(settings, SystemClock()) as client:
        request = {"TableName": settings.table, "Key": head_key(CHANNEL)}
        item = (await client.call("get_item", request))["Item"]
    return item["by"]["S"].rpartition(".")[0]


def measure(emulator, broker, seconds, *, kills=False, **given) -> Writers:
    """Run processes on a fresh table."""
    settings = emulator.settings(connections=4)
    asyncio.run(create(settings))
    writers = Writers(settings, emulator.credentials, broker, seconds=seconds, **given)
    try:
        writers.begin()
        if kills:
            time.sleep(seconds / 2)
            number = int(asyncio.run(owner(settings)).removeprefix("writer"))
            os.kill(writers.pids[number], signal.SIGKILL)
        writers.wait()
    finally:
        writers.close()
    return writers


def row(name: str, writers: Writers, bare: float | None) -> float:
    """Print a line of the table; return the rate."""
    every = writers.acknowledged()
    offsets = sorted(offset for offset, _, _ in every)
    if len(set(offsets)) != len(offsets):
        raise SystemExit("an offset was acknowledged twice")
    times = [when for _, when, _ in every]
    span = times[-1] - times[0]
    rate = (len(times) - 1) / span
    gaps = [two - one for one, two in pairwise(times)]
    failed = sum(len(each["failed"]) for each in writers.results)
    calls = sum(each["attempts"] for each in writers.results) / len(every)
    cells = [
        name,
        f"{rate:,.0f}",
        "" if bare is None else f"{rate / bare:.1f}",
        f"{calls:.2f}",
        str(failed),
        f"{max(gaps):.2f}",
        f"{percentile(gaps, 0.99) * 1e3:.0f}",
    ]
    print("| " + " | ".join(cells) + " |", flush=True)
    return rate


def main(seconds: float, processes: int) -> None:
    """Measure all rows, and print the table."""
    print(describe()["machine"], "Python", describe()["python"])
    print()
    print(
        "| | a second | of one writer | calls each | failed | longest gap s "
        "| p99 gap ms |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    emulator = running("ministack")
    os.environ.update(emulator.credentials)
    valkey = Valkey().start()
    try:
        bare = row("one writer", measure(emulator, None, seconds, processes=1), None)
        for name, broker, given in (
            ("without a broker", None, {}),
            ("with a broker", valkey, {}),
            ("with a broker, 4 publishers each", valkey, {"publishers": 4}),
            ("with a broker, owner killed", valkey, {"kills": True}),
        ):
            found = measure(emulator, broker, seconds, processes=processes, **given)
            row(f"{processes} processes {name}", found, bare)
    finally:
        valkey.kill()
        close_all()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--processes", type=int, default=32)
    arguments = parser.parse_args()
    main(arguments.seconds, arguments.processes)

"""Benchmark of the payload encoder: how late the event loop is while others encode.

    python benchmarks/bench_encoder.py [--seconds N]

A task ticks every millisecond while values are encoded: on the loop (`dump`), in four
threads that do nothing but that, and by the encoder, for 16 callers at once. Idle is
the same without any value: what the machine does by itself. It prints a Markdown table.

On a busy machine a tick is late because other processes run. So the time that this
process has computed from one tick to the next is shown as well: what the loop waited
for is that at most.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from service.core.clock import SystemClock
from service.core.errors import ReplyError
from service.payload import dump
from service.payload.encoder import PayloadEncoder

MIB = 1024 * 1024
TICK = 0.001  # s


@dataclasses.dataclass
class Item:
    """A member of a state."""

    id: int
    name: str
    done: bool


class Computing:
    """An object whose method computes for a long time, in Python."""

    def __json__(self) -> object:
        return {"sum": sum(number * number for number in range(1_000_000))}


class Sleeping:
    """An object whose method waits."""

    def __json__(self) -> object:
        time.sleep(0.2)
        return {}


VALUES: dict[str, object] = {
    "1 MiB of text": "x" * (MIB - 2),
    "1 MiB of empty lists": [[] for _ in range(MIB // 3 - 1)],
    "1 MiB of small objects": [{"a": 1} for _ in range(MIB // 8 - 1)],
    "10 MiB, which is too much": ["x" * 1000] * 10_240,
    "10,000 dataclasses": [Item(n, str(n), True) for n in range(10_000)],
    "a method that computes": Computing(),
    "a method that sleeps 0.2 s": Sleeping(),
}


async def lateness(
    seconds: float, callers: int, encode: Callable[[], Awaitable[object]]
) -> tuple[list[float], list[float], int]:
    """Return how late each tick was, what was computed since, and how much was encoded.

    The first two are in seconds, sorted.
    """
    late: list[float] = []
    computed: list[float] = []
    end = time.perf_counter() + seconds
    count = 0

    async def call() -> None:
        nonlocal count
        while time.perf_counter() < end:
            try:
                await encode()
                count += 1
            except ReplyError:
                pass

    calls = [asyncio.create_task(call()) for _ in range(callers)]
    while time.perf_counter() < end:
        before, used = time.perf_counter(), time.process_time()
        await asyncio.sleep(TICK)
        late.append(time.perf_counter() - before - TICK)
        computed.append(time.process_time() - used)
    await asyncio.gather(*calls)
    return sorted(late), sorted(computed), count


async def main(seconds: float) -> None:
    print(f"Python {platform.python_version()}, {platform.machine()}, {seconds} s each")
    print()
    print(
        "| value | how | encoded | late p50 ms | p99 ms | max ms "
        "| computed p50 ms | p99 ms | max ms |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")

    async def show(name: str, how: str, callers: int, encode: object) -> None:
        *times, count = await lateness(seconds, callers, encode)  # type: ignore[arg-type]
        figures = " | ".join(
            f"{1000 * each:.1f}"
            for sample in times
            for each in (
                sample[len(sample) // 2],
                sample[int(len(sample) * 0.99)],
                sample[-1],
            )
        )
        print(f"| {name} | {how} | {count:,} | {figures} |", flush=True)

    await show("none", "idle", 0, None)
    for name, value in VALUES.items():

        async def on_the_loop(value: object = value) -> None:
            dump(value)
            await asyncio.sleep(0)

        async def in_threads(value: object = value) -> None:
            await asyncio.to_thread(dump, value)

        await show(name, "on the loop", 1, on_the_loop)
        await show(name, "four threads", 4, in_threads)
        encoder = PayloadEncoder(SystemClock())
        await show(name, "encoder", 16, lambda e=encoder, v=value: e.dump(v))
        encoder.close()
    await show("none", "idle", 0, None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    asyncio.run(main(parser.parse_args().seconds))

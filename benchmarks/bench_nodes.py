"""Benchmark of two servers on one table: how soon one delivers what the other commits.

    python -m benchmarks.bench_nodes [--seconds N] [--rate N] [--only NAME ...]

Two servers, one publisher on the first, one subscriber on each. The publisher sends at
a fixed rate, whatever is delivered, and each publication is timed from when it was due:

* ``local``: until the subscriber on the same server has it. Most of it is the emulator
  of DynamoDB (ministack), which commits a transaction in the time it takes.
* ``across``: until the subscriber on the other server has it.
* ``hop``: the difference of the two, for each publication.

``valkey`` stands beside ``bare``: a publish/subscribe through the same Valkey with the
same client library and the same rate, without a server of ours. ``polls`` has no
broker. ``idle`` is the processor time of the second server for a minute without
publications, with one channel followed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import redis.asyncio

from benchmarks.load import connect, cpu, describe, exchange, frame, percentile
from tests.harness.backends import BACKENDS
from tests.harness.emulators import close_all
from tests.harness.raw import PATH
from tests.harness.server import Server
from tests.harness.valkey import Valkey

OPTIONS = {"history_size": 1000, "history_ttl": 600, "force_recovery": True}
SETTLE = 3.0  # s until everything is followed, and polls have slowed down
LATE = 20.0  # s until the last publication must be there
IDLE = 10.0  # s


async def paced(rate: float, count: int, send: Callable[[int], object]) -> float:
    """Send *count* things at *rate*; return when the first was due."""
    start = time.perf_counter() + 0.05
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        send(number)
    return start


class Receiver:
    """Notes when each publication came."""

    def __init__(self) -> None:
        self.came: dict[int, float] = {}

    def __call__(self, data: bytes) -> None:
        now = time.perf_counter()
        for part in data.split(b'"n":')[1:]:
            self.came.setdefault(int(part.split(b"}")[0]), now)

    async def complete(self, count: int) -> None:
        deadline = time.perf_counter() + LATE
        while len(self.came) < count:
            if time.perf_counter() > deadline:
                raise SystemExit(f"{len(self.came)} of {count} came")
            await asyncio.sleep(0.01)

    def times(self, start: float, rate: float) -> list[float]:
        return [self.came[n] - start - n / rate for n in sorted(self.came)]


async def bare(valkey: Valkey, rate: float, count: int) -> list[float]:
    """Return the times of a publish/subscribe without a server of ours."""
    receiver = Receiver()
    async with (
        redis.asyncio.Redis.from_url(valkey.url) as client,
        client.pubsub() as subscriber,
    ):
        await subscriber.subscribe("bare")

        async def receive() -> None:
            async for message in subscriber.listen():
                if message["type"] == "message":
                    receiver(message["data"])

        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(receive())

            def send(number: int) -> None:
                text = json.dumps({"n": number})
                group.create_task(client.publish("bare", text))

            start = await paced(rate, count, send)
            await receiver.complete(count)
            receiving.cancel()
    return receiver.times(start, rate)


async def served(
    servers: list[Server], rate: float, count: int
) -> tuple[list[float], list[float], float]:
    """Return the local times, those across, and the idle processor time."""
    here, there = servers
    receivers = []
    for server in servers:
        [client] = await connect(server.port, PATH, 1)
        await exchange(client, '{"connect":{},"id":1}')
        await exchange(client, '{"subscribe":{"channel":"bench"},"id":2}')
        receivers.append(Receiver())
        client.received = receivers[-1]
    [publisher] = await connect(here.port, PATH, 1)
    await exchange(publisher, '{"connect":{},"id":1}')
    await asyncio.sleep(SETTLE)

    def send(number: int) -> None:
        command = {"channel": "bench", "data": {"n": number}}
        publisher.send(frame(json.dumps({"id": number + 2, "publish": command})))

    start = await paced(rate, count, send)
    for receiver in receivers:
        await receiver.complete(count)
    await asyncio.sleep(SETTLE)
    before = cpu(there.process.pid)
    await asyncio.sleep(IDLE)
    idle = (cpu(there.process.pid) - before) * 60 / IDLE
    local, across = (receiver.times(start, rate) for receiver in receivers)
    return local, across, idle


def row(name: str, *columns: list[float], idle: float | None = None) -> str:
    """Return a line of the table; times in milliseconds."""
    cells = [name]
    for column in columns:
        if not column:
            cells += ["", ""]
            continue
        cells += [f"{percentile(column, share) * 1e3:.1f}" for share in (0.5, 0.99)]
    cells.append("" if idle is None else f"{idle:.2f}")
    return "| " + " | ".join(cells) + " |"


async def nodes(valkey: Valkey | None, rate: float, count: int) -> str:
    """Return the line of two servers on one table."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        shared = {
            **BACKENDS["dynamodb"](),
            **({} if valkey is None else valkey.settings),
            "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(OPTIONS),
        }
        servers = []
        for name in ("here", "there"):
            (Path(directory) / name).mkdir()
            server = Server(Path(directory) / name, shared)
            stack.callback(server.close)
            servers.append(server.start_blocking())
        local, across, idle = await served(servers, rate, count)
    hop = [two - one for one, two in zip(local, across, strict=True)]
    name = "polls" if valkey is None else "valkey"
    return row(name, local, across, hop, idle=idle)


async def main(seconds: float, rate: float, only: list[str]) -> None:
    """Measure what is asked for, and print the table."""
    print(describe()["machine"], "Python", describe()["python"], f"{rate:g} a second")
    print()
    print(
        "| | local p50 ms | p99 | across p50 ms | p99 | hop p50 ms | p99 "
        "| idle CPU s/min |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    count = int(seconds * rate)
    valkey = Valkey().start()
    try:
        if "bare" in only:
            times = await bare(valkey, rate, count)
            print(row("bare publish/subscribe", [], times, times))
        if "valkey" in only:
            print(await nodes(valkey, rate, count))
        if "polls" in only:
            print(await nodes(None, rate, count))
    finally:
        valkey.kill()
        close_all()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument(
        "--only", nargs="+", default=["bare", "valkey", "polls"], metavar="NAME"
    )
    arguments = parser.parse_args()
    asyncio.run(main(arguments.seconds, arguments.rate, arguments.only))

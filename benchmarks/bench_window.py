"""Benchmark of batch windows: frames and CPU for streams of tokens.

    python benchmarks/bench_window.py [--seconds N] [--rounds N]

Ten channels, each with 20 subscribers and a publisher that sends 100 tokens of 60 bytes
a second, evenly: 20,000 deliveries a second. The server, a process of its own, has a
batch window of 0, 0.02 and 0.05 s, in turns. Shown are the frames that a subscriber is
sent for 100 tokens, the server's CPU for each token delivered, and the time from its
scheduled send to its arrival. It prints a Markdown table: the median of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from typing import Any

from bench_server import ours
from load import connect, cpu, describe, exchange, frame, loop_factory, percentile

STREAMS = 10
READERS = 20  # of each stream
RATE = 100  # tokens a second of each stream
WINDOWS = (0.0, 0.02, 0.05)  # s


async def measure(window: float, seconds: float) -> dict[str, float]:
    """Return what one server with *window* sends and uses."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {
            "STEADWIRE_CHANNELS_NAMESPACES": json.dumps(
                [
                    {
                        "name": "tokens",
                        "history_size": 1000,
                        "history_ttl": 300,
                        "batch_window": window,
                    }
                ]
            ),
        }
        with ours(directory, environment) as (pid, port):
            return await stream(pid, port, seconds)


async def stream(pid: int, port: int, seconds: float) -> dict[str, float]:
    """Send the tokens of all streams for *seconds*."""
    path = "/connection/websocket"
    publishers = await connect(port, path, STREAMS)
    readers: list[Any] = await connect(port, path, STREAMS * READERS)
    for client in publishers:
        await exchange(client, '{"connect":{},"id":1}')
    frames = tokens = 0
    latencies: list[float] = []
    start = 0.0

    def received(data: bytes) -> None:
        nonlocal frames, tokens
        now = time.perf_counter()
        count = data.count(b'"n":')
        tokens += count
        frames += bool(count)
        for part in data.split(b'"n":')[1:]:
            number = int(part.split(b"}")[0])
            latencies.append(now - start - number / RATE)

    for index, client in enumerate(readers):
        await exchange(client, '{"connect":{},"id":1}')
        name = f"tokens:{index % STREAMS}"
        await exchange(client, f'{{"subscribe":{{"channel":"{name}"}},"id":2}}')
        client.received = received
    total = int(seconds * RATE)
    before = cpu(pid)
    start = time.perf_counter() + 0.05
    for number in range(total):
        await asyncio.sleep(max(0.0, start + number / RATE - time.perf_counter()))
        for index, client in enumerate(publishers):
            data = {"text": "x" * 30, "n": number}
            command = {"channel": f"tokens:{index}", "data": data}
            client.send(frame(json.dumps({"id": number + 2, "publish": command})))
    expected = total * STREAMS * READERS
    deadline = time.perf_counter() + 20
    while tokens < expected and time.perf_counter() < deadline:
        await asyncio.sleep(0.01)
    if tokens != expected:
        raise SystemExit(f"{tokens} of {expected} tokens came")
    return {
        "frames": frames / expected * 100,
        "cpu_us": (cpu(pid) - before) / expected * 1e6,
        "p50_ms": percentile(latencies, 0.50) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
    }


async def main(seconds: float, rounds: int) -> None:
    """Measure the windows in turns, and print the table."""
    found: dict[float, list[dict[str, float]]] = {window: [] for window in WINDOWS}
    for _ in range(rounds):
        for window in WINDOWS:
            found[window].append(await measure(window, seconds))
    print(describe()["machine"], "Python", describe()["python"])
    print()
    print("| window s | frames per 100 tokens | CPU µs per token | p50 ms | p99 ms |")
    print("|---:|---:|---:|---:|---:|")
    for window, runs in found.items():
        row = [statistics.median(run[key] for run in runs) for key in runs[0]]
        print(f"| {window} | " + " | ".join(f"{each:.1f}" for each in row) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(arguments.seconds, arguments.rounds))

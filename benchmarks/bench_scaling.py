"""Benchmark of several processes on one store: how soon they hear, and what it costs.

    python benchmarks/bench_scaling.py [--json FILE] [--seconds N]

(a) Publish to delivery at a fixed offered rate, from the *scheduled* send: the
    subscriber at the publisher's own process, and at another process of the same SQLite
    file, which notices by ``PRAGMA data_version``.
(b) A process without clients: CPU per second, with the file for itself and with a
    shared one.
(c) 1,000 subscribers of one channel, with one process and with ``--workers 2``: CPU of
    all processes per delivery at a fixed rate, and deliveries per second when
    publications wait for nobody. The generator takes a core, or more, itself.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager

import psutil
from bench_server import PAYLOAD, SUBSCRIBERS, join
from load import cpu, describe, exchange, figures, frame, loop_factory, process, write

RATE = 200  # publications a second
FAN_RATE = 5  # publications a second, each to all subscribers
BURST = 100  # publications that wait for nobody
COMMAND = [sys.executable, "-m", "service", "serve", "--port", "0"]


@contextmanager
def server(directory, *, shared=False, workers=1):
    environment = {
        "STEADWIRE_STORE_PATH": os.path.join(directory, f"bench-{workers}.db"),
        "STEADWIRE_STORE_SHARED_BY": "bench" if shared else "",
        "STEADWIRE_SERVER_WORKERS": str(workers),
        "STEADWIRE_CLIENT_PING_INTERVAL": "300",
        "STEADWIRE_CLIENT_HEARTBEAT_TIMEOUT": "900",
        "STEADWIRE_CONNECTIONS_LIMIT": "20000",
        "STEADWIRE_CONNECTIONS_ADDRESS_LIMIT": "20000",
    }
    with process(COMMAND, environment) as (pid, port):
        pids = [child.pid for child in psutil.Process(pid).children()]
        yield pids or [pid], port


def used(pids):
    return sum(map(cpu, pids))


async def latency(publisher, subscriber, channel, seconds):
    """Return the latencies of publications at `RATE`."""
    [talks] = await join(publisher, 1, None)
    [listens] = await join(subscriber, 1, lambda index: channel)
    scheduled, latencies = [], []

    def received(data):
        now = time.perf_counter()
        for _ in range(data.count(b'"pub"')):
            latencies.append(now - scheduled.pop(0))

    listens.received = received
    text = f'{{"publish":{{"channel":"{channel}","data":{PAYLOAD}}},"id":3}}'
    total = int(RATE * seconds)
    start = time.perf_counter() + 0.05
    for number in range(total):
        due = start + number / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        scheduled.append(due)
        talks.send(frame(text))
    async with asyncio.timeout(30):
        while scheduled:
            await asyncio.sleep(0.005)
    for client in (talks, listens):
        client.transport.abort()
    return figures(latencies)


async def heard(directory, seconds):
    """(a)"""
    with ExitStack() as stack:
        (_, here), (_, there) = [
            stack.enter_context(server(directory, shared=True)) for _ in range(2)
        ]
        result = {}
        for name, port in (("same", here), ("other", there)):
            await latency(here, port, f"warm-{name}", 1)
            result[name] = await latency(here, port, f"scaling-{name}", seconds)
        return result


async def idle(directory, seconds):
    """(b)"""
    result = {}
    for name, shared in (("alone", False), ("shared", True)):
        with server(directory, shared=shared) as (pids, _):
            await asyncio.sleep(2)  # the start
            before = used(pids)
            await asyncio.sleep(seconds)
            result[name] = {"cpu_ms": 1000 * (used(pids) - before) / seconds}
    return result


async def fan_out(directory, seconds, workers):
    """(c)"""
    with server(directory, workers=workers) as (pids, port):
        clients = await join(port, SUBSCRIBERS, lambda index: "fan")
        [talks] = await join(port, 1, None)
        spread = [
            sum(
                one.status == psutil.CONN_ESTABLISHED
                for one in psutil.Process(pid).net_connections("tcp")
            )
            for pid in pids
        ]
        count = 0

        def received(data):
            nonlocal count
            count += data.count(b'"pub"')

        for client in clients:
            client.received = received
        text = f'{{"publish":{{"channel":"fan","data":{PAYLOAD}}},"id":3}}'

        async def arrive(total):
            async with asyncio.timeout(120):
                while count < total:
                    await asyncio.sleep(0.002)

        await exchange(talks, text)
        await arrive(SUBSCRIBERS)
        count = 0
        before, total = used(pids), int(FAN_RATE * seconds)
        start = time.perf_counter()
        for number in range(total):
            due = start + number / FAN_RATE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            talks.send(frame(text))
        await arrive(total * SUBSCRIBERS)
        cpu_us = 1e6 * (used(pids) - before) / (total * SUBSCRIBERS)
        count = 0
        start = time.perf_counter()
        talks.send(frame(text) * BURST)
        await arrive(BURST * SUBSCRIBERS)
        rate = BURST * SUBSCRIBERS / (time.perf_counter() - start)
        return {"cpu_us": cpu_us, "per_second": rate, "spread": spread}


async def measure(seconds):
    with tempfile.TemporaryDirectory() as directory:
        return {
            "a": await heard(directory, seconds),
            "b": await idle(directory, seconds),
            "c": {
                str(workers): await fan_out(directory, seconds, workers)
                for workers in (1, 2)
            },
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        report = {**describe(), **runner.run(measure(options.seconds))}
    report["rate"] = RATE
    print(json.dumps(report, indent=2))
    write(options.json, report)


if __name__ == "__main__":
    main()

"""Benchmark of the whole server, against a bare echo on the same Hypercorn.

    python benchmarks/bench_server.py [--json FILE] [--check] [--seconds N]

(a) 100 clients, each publishing to a channel of its own with history on, and receiving
    that: server CPU per delivered message, and latency from the *scheduled* send, at a
    fixed rate. The rival is exactly ``await ws.send_text(await ws.receive_text())``.
(b) One publication to 1,000 subscribers: server CPU per delivery. The rival is a loop
    of ``send_text``.
(c) Idle connections, connected and subscribed: private memory of each.
(d) Durable publications a second, by 1, 16 and 200 clients that wait for each reply.

Every figure is measured as rival, ours, rival in one call; CPU is the server process's
own clock. ``--check`` exits with 1 when a target is missed.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from load import (
    connect,
    cpu,
    describe,
    exchange,
    frame,
    loop_factory,
    memory,
    percentile,
    process,
    write,
)

TARGETS = {"a": 2.2, "b": 1.15, "c": 40 * 1024}
HERE = Path(__file__).parent
CLIENTS = 100
RATE = 2000  # messages a second, all clients together
SUBSCRIBERS = 1000
FAN_RATE = 5  # publications a second, each to all subscribers
IDLE = 2000
TEXT = "Every subscriber reads the words in the order they were written in, once. "
PAYLOAD = json.dumps({"text": TEXT * 2})


@contextmanager
def ours(directory, environment=None):
    environment = {
        "STEADWIRE_STORE_PATH": os.path.join(directory, "bench.db"),
        "STEADWIRE_CLIENT_PING_INTERVAL": "300",
        "STEADWIRE_CLIENT_HEARTBEAT_TIMEOUT": "900",
        "STEADWIRE_CONNECTIONS_LIMIT": "20000",
        "STEADWIRE_CONNECTIONS_ADDRESS_LIMIT": "20000",
        **(environment or {}),
    }
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with process(command, environment) as server:
        yield server


@contextmanager
def rival(kind="stock"):
    with process([sys.executable, str(HERE / "echo.py"), kind]) as server:
        yield server


async def join(port, count, channel):
    """Return clients that are connected and subscribed to ``channel(index)``."""
    clients = await connect(port, "/connection/websocket", count)
    for index, client in enumerate(clients):
        await exchange(client, '{"connect":{},"id":1}')
        if channel is not None:
            name = channel(index)
            await exchange(client, f'{{"subscribe":{{"channel":"{name}"}},"id":2}}')
    return clients


async def paced(pid, clients, texts, is_delivery, seconds, rate):
    """Send at *rate* for *seconds*; return CPU per delivery and the latencies."""
    scheduled = [[] for _ in clients]
    latencies = []

    def receiver(index):
        waiting = scheduled[index]

        def received(data):
            count = is_delivery(data)
            now = time.perf_counter()
            for _ in range(count):
                latencies.append(now - waiting.pop(0))

        return received

    for index, client in enumerate(clients):
        client.received = receiver(index)
    frames = [frame(text) for text in texts]
    total = int(seconds * rate)
    cpu_before = cpu(pid)
    start = time.perf_counter() + 0.05
    sent = 0
    while sent < total:
        due = min(total, int((time.perf_counter() - start) * rate))
        while sent < due:
            index = sent % len(clients)
            scheduled[index].append(start + sent / rate)
            clients[index].send(frames[index])
            sent += 1
        await asyncio.sleep(0.0005)
    deadline = time.perf_counter() + 20
    while len(latencies) < total and time.perf_counter() < deadline:
        await asyncio.sleep(0.005)
    used = cpu(pid) - cpu_before
    if len(latencies) != total:
        raise SystemExit(f"{len(latencies)} of {total} messages came back")
    return {
        "cpu_us": used / total * 1e6,
        "p50_ms": percentile(latencies, 0.50) * 1e3,
        "p99_ms": percentile(latencies, 0.99) * 1e3,
    }


async def publish_and_receive(directory, seconds):
    """(a)"""

    async def echo(kind):
        with rival(kind) as (pid, port):
            clients = await connect(port, "/echo", CLIENTS)
            text = f'{{"publish":{{"channel":"own:0","data":{PAYLOAD}}},"id":3}}'
            await paced(pid, clients, [text] * CLIENTS, lambda data: 1, 1, RATE)
            return await paced(
                pid, clients, [text] * CLIENTS, lambda data: 1, seconds, RATE
            )

    async def service():
        with ours(directory) as (pid, port):
            clients = await join(port, CLIENTS, lambda index: f"own-{index}")
            texts = [
                f'{{"publish":{{"channel":"own-{index}","data":{PAYLOAD}}},"id":3}}'
                for index in range(CLIENTS)
            ]

            def pushes(data):
                return data.count(b'{"push":')

            await paced(pid, clients, texts, pushes, 1, RATE)
            return await paced(pid, clients, texts, pushes, seconds, RATE)

    first, mine, second = await echo("stock"), await service(), await echo("stock")
    adapted = await echo("adapted")
    bare = (first["cpu_us"] + second["cpu_us"]) / 2
    return {
        "rival": first,
        "ours": mine,
        "rival_again": second,
        "rival_on_our_adapter": adapted,
        "ratio": mine["cpu_us"] / bare,
        "ratio_to_adapted": mine["cpu_us"] / adapted["cpu_us"],
    }


async def fan_out(directory, seconds):
    """(b)"""

    async def measure(pid, clients, text, delivery):
        got = 0

        def received(data):
            nonlocal got
            got += delivery(data)

        for client in clients:
            client.received = received
        publications = int(seconds * FAN_RATE)
        data = frame(text)
        for warm in (True, False):
            got = 0
            count = 5 if warm else publications
            before = cpu(pid)
            for number in range(count):
                clients[0].send(data)
                while got < (number + 1) * len(clients):
                    await asyncio.sleep(0.001)
            used = cpu(pid) - before
        return {"cpu_us": used / publications / len(clients) * 1e6}

    async def bare(kind):
        with rival(kind) as (pid, port):
            clients = await connect(port, "/fan", SUBSCRIBERS)
            push = f'{{"push":{{"channel":"fan","pub":{{"data":{PAYLOAD}}}}}}}'
            return await measure(pid, clients, push, lambda data: 1)

    async def service():
        with ours(directory) as (pid, port):
            clients = await join(port, SUBSCRIBERS, lambda index: "fan")
            text = f'{{"publish":{{"channel":"fan","data":{PAYLOAD}}},"id":3}}'
            return await measure(
                pid, clients, text, lambda data: data.count(b'{"push":')
            )

    first, mine, second = await bare("stock"), await service(), await bare("stock")
    adapted = await bare("adapted")
    rivals = (first["cpu_us"] + second["cpu_us"]) / 2
    return {
        "rival": first,
        "ours": mine,
        "rival_again": second,
        "rival_on_our_adapter": adapted,
        "ratio": mine["cpu_us"] / rivals,
        "ratio_to_adapted": mine["cpu_us"] / adapted["cpu_us"],
    }


async def idle(directory):
    """(c)"""
    with ours(directory) as (pid, port):
        warm = await join(port, 200, lambda index: f"warm-{index}")
        before = memory(pid)
        clients = await join(port, IDLE, lambda index: f"idle-{index}")
        after = memory(pid)
        del warm, clients
    return {"bytes": (after - before) / IDLE}


async def durable(directory, seconds):
    """(d)"""
    results = {}
    for publishers in (1, 16, 200):
        with ours(directory) as (_, port):
            clients = await join(port, publishers, None)
            data = frame(f'{{"publish":{{"channel":"log","data":{PAYLOAD}}},"id":3}}')
            done = 0

            def receiver(client, data=data):
                def received(text):
                    nonlocal done
                    done += 1
                    client.send(data)

                return received

            for client in clients:
                client.received = receiver(client)
                client.send(data)
            await asyncio.sleep(0.5)
            before, start = done, time.perf_counter()
            await asyncio.sleep(seconds)
            rate = (done - before) / (time.perf_counter() - start)
            for client in clients:
                client.received = lambda text: None
        results[str(publishers)] = {"publications_per_second": rate}
    return results


async def main(arguments):
    report = describe()
    with tempfile.TemporaryDirectory() as directory:
        report["a"] = await publish_and_receive(directory, arguments.seconds)
        show("a", "publish and receive, CPU per message", report["a"])
        report["b"] = await fan_out(directory, arguments.seconds)
        show("b", "one to 1,000, CPU per delivery", report["b"])
        report["c"] = await idle(directory)
        print(f"(c) idle connection: {report['c']['bytes'] / 1024:.1f} KiB")
        report["d"] = await durable(directory, max(2.0, arguments.seconds / 2))
        for publishers, figures in report["d"].items():
            rate = figures["publications_per_second"]
            print(f"(d) {publishers:>3} publishers: {rate:,.0f} durable publications/s")
    missed = [
        name
        for name, value in (
            ("a", report["a"]["ratio"]),
            ("b", report["b"]["ratio"]),
            ("c", report["c"]["bytes"]),
        )
        if value > TARGETS[name]
    ]
    report["missed"] = missed
    write(arguments.json, report)
    if missed:
        print("missed:", ", ".join(missed))
    return 1 if missed and arguments.check else 0


def show(name, title, figures):
    print(f"({name}) {title}")
    for who in ("rival", "ours", "rival_again", "rival_on_our_adapter"):
        row = figures[who]
        latency = (
            f"  p50 {row['p50_ms']:.2f} ms  p99 {row['p99_ms']:.2f} ms"
            if "p50_ms" in row
            else ""
        )
        print(f"    {who:<20} {row['cpu_us']:7.1f} us{latency}")
    print(
        f"    ratio {figures['ratio']:.2f} (target {TARGETS[name]}); "
        f"to the echo on our server adapter {figures['ratio_to_adapted']:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seconds", type=float, default=6.0)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(main(parser.parse_args())))

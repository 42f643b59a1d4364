"""Benchmark of latency at a fixed load, with and without clients that do not read.

    python benchmarks/bench_load.py [--json FILE] [--check] [--seconds N]

50 users with 3 sockets each, subscribed to a channel of the user; 500 publications a
second, in turn to each user's channel, by its first socket. A latency is from the
*scheduled* send of a publication to its arrival at a socket of that user: what the
generator or the server is late counts. 15 of the 150 sockets are not measured. Beside
their user's channel they have one on which 16 KB are published 20 times a second, and

(alone) they read, as all others do;
(beside) they never read, so that their buffers and queues fill until they are closed.
    Each comes back 6 s after it came.

Meanwhile 20 clients a second connect, timed from the scheduled start of TCP to the
reply. The rival is a bare echo on stock Hypercorn that sends as many messages: 1,500 a
second over 150 sockets. Order: echo, alone, beside, echo again.

``--check`` exits with 1 when a figure of one of ours is above its target and above 3
times the echo's (the worse of the two): p50 50 ms, p99 500 ms, the longest 2 s. The p99
of connects has 500 ms, or 3 times the p99 of the echo.
"""

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import socket
import sys
import tempfile
import time
import urllib.request
from collections import deque
from contextlib import contextmanager
from pathlib import Path

from load import (
    Client,
    connect,
    describe,
    exchange,
    figures,
    frame,
    loop_factory,
    process,
    write,
)

TARGETS = {"p50_ms": 50, "p99_ms": 500, "max_ms": 2000}
CONNECT_TARGET = 500  # ms, p99
TIMES_ECHO = 3
USERS = 50
SOCKETS = 3  # of each user
SLOW = 15  # of the sockets: the last one of as many users
RATE = 500  # publications a second, all users together
FLOOD_RATE = 20  # publications a second to the sockets that may be slow
FLOOD = json.dumps("x" * 16_000)
LIFE = 6.0  # s, of a slow socket
CONNECTS = 20  # a second
PATH = "/connection/websocket"
SECRET = "benchmark-secret-of-32-bytes-or-more"
KEY = "benchmark-key"
TEXT = "Every subscriber reads the words in the order they were written in, once. "
PAYLOAD = json.dumps({"text": TEXT * 2})
HERE = Path(__file__).parent


def token(user):
    def part(value):
        text = json.dumps(value).encode()
        return base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    signed = part({"alg": "HS256"}) + "." + part({"sub": user})
    digest = hmac.digest(SECRET.encode(), signed.encode(), hashlib.sha256)
    return signed + "." + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@contextmanager
def ours(directory):
    options = {
        "allow_subscribe_for_client": True,
        "allow_publish_for_subscriber": True,
    }
    environment = {
        "STEADWIRE_STORE_PATH": os.path.join(directory, "bench.db"),
        "STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET,
        "STEADWIRE_API_KEY": KEY,
        "STEADWIRE_CONNECTIONS_LIMIT": "1000",
        "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(options),
    }
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with process(command, environment) as (_, port):
        yield port


def name_of(user):
    return f"user{user:02}"


async def join(client, user, channels):
    """Connect a client and subscribe it."""
    await client.open
    commands = [{"id": 1, "connect": {"token": token(name_of(user))}}]
    commands += [{"id": 2, "subscribe": {"channel": name}} for name in channels]
    for command in commands:
        reply = await exchange(client, json.dumps(command))
        if b'"error"' in reply:
            raise SystemExit(reply.decode())


class Load:
    """Publications at a fixed rate, and the latency of each delivery."""

    def __init__(self, publishers):
        self._publishers = publishers  # client and what it publishes, of each user
        self._scheduled = [[] for _ in publishers]  # of each user, queues of times
        self.latencies = []

    def measure(self, client, user, mark):
        """Take the latency of what *client* receives with *mark* in it."""
        waiting = deque()
        self._scheduled[user].append(waiting)

        def received(data):
            now = time.perf_counter()
            for _ in range(data.count(mark)):
                self.latencies.append(now - waiting.popleft())

        client.received = received

    async def run(self, seconds, rate=RATE):
        """Send for so long and return the figures when everything has arrived."""
        self.latencies.clear()
        total = int(seconds * rate)
        start = time.perf_counter() + 0.05
        sent = 0
        while sent < total:
            due = min(total, int((time.perf_counter() - start) * rate))
            while sent < due:
                user = sent % len(self._publishers)
                for waiting in self._scheduled[user]:
                    waiting.append(start + sent / rate)
                client, data = self._publishers[user]
                client.send(data)
                sent += 1
            await asyncio.sleep(0.0005)
        deadline = time.perf_counter() + 20
        while any(waiting for user in self._scheduled for waiting in user):
            if time.perf_counter() > deadline:
                raise SystemExit("publications are missing")
            await asyncio.sleep(0.005)
        return {**figures(self.latencies), "max_ms": 1000 * max(self.latencies)}


async def echo(seconds):
    with process([sys.executable, str(HERE / "echo.py"), "stock"]) as (_, port):
        clients = await connect(port, "/echo", USERS * SOCKETS)
        data = frame(f'{{"publish":{{"channel":"user00","data":{PAYLOAD}}},"id":3}}')
        load = Load([(client, data) for client in clients])
        for number, client in enumerate(clients):
            load.measure(client, number, b'"channel"')
        await load.run(1, RATE * SOCKETS)
        return await load.run(seconds, RATE * SOCKETS)


async def service(seconds, *, slow):
    """Measure ours; the last socket of the first users reads, or does not."""
    with tempfile.TemporaryDirectory() as directory, ours(directory) as port:
        clients = await connect(port, PATH, USERS * SOCKETS - SLOW)
        publishers, measured = [], []
        left = iter(clients)
        for user in range(USERS):
            mine = [next(left) for _ in range(SOCKETS - (user < SLOW))]
            for client in mine:
                await join(client, user, [name_of(user)])
                measured.append((client, user))
            command = f'{{"channel":"{name_of(user)}","data":{PAYLOAD}}}'
            publishers.append((mine[0], frame(f'{{"publish":{command},"id":3}}')))
        load = Load(publishers)
        for client, user in measured:
            load.measure(client, user, f'"channel":"{name_of(user)}"'.encode())

        connects = []
        around = [flood(port), connecting(port, connects)]
        around += [other(port, user, slow) for user in range(SLOW)]
        tasks = [asyncio.create_task(one) for one in around]
        await load.run(2)
        connects.clear()
        result = await load.run(seconds)
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                raise ended
        result["connects"] = figures(connects)
        result["slow_closed"] = await asyncio.to_thread(closed, port)
    if slow and not result["slow_closed"]:
        raise SystemExit("nobody was closed for being slow: the load proves nothing")
    return result


async def other(port, user, slow):
    """Be one of the sockets that are not measured."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(LIFE * user / SLOW if slow else 0)
    while True:
        sock = socket.socket()
        sock.setblocking(False)
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        _, client = await loop.create_connection(lambda: Client(PATH), sock=sock)
        try:
            await join(client, user, [name_of(user), "flood"])
            if slow:
                client.transport.pause_reading()
                await asyncio.sleep(LIFE)
            else:
                await loop.create_future()
        finally:
            client.transport.abort()


async def flood(port):
    """Publish to the sockets that may be slow."""
    [client] = await connect(port, PATH, 1)
    await join(client, USERS, ["flood"])
    data = frame(f'{{"publish":{{"channel":"flood","data":{FLOOD}}},"id":3}}')
    while True:
        client.send(data)
        await asyncio.sleep(1 / FLOOD_RATE)


async def connecting(port, latencies):
    """Connect at a fixed rate, one more client each time."""

    async def one(number, scheduled):
        [client] = await connect(port, PATH, 1)
        await join(client, USERS + number, [])
        latencies.append(time.perf_counter() - scheduled)
        client.transport.abort()

    async with asyncio.TaskGroup() as group:
        start = time.perf_counter()
        number = 0
        while True:
            number += 1
            scheduled = start + number / CONNECTS
            await asyncio.sleep(max(0.0, scheduled - time.perf_counter()))
            group.create_task(one(number, scheduled))


def closed(port):
    """Return how many connections the server has closed for being slow."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"X-API-Key": KEY}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        text = response.read().decode()
    found = re.findall(r'^steadwire_closes_total\{code="300[89]"\} (\S+)', text, re.M)
    return int(sum(map(float, found)))


def judge(report):
    """Return the targets that ours misses."""
    missed = []
    bare = {
        figure: TIMES_ECHO * max(report["echo"][figure], report["echo_again"][figure])
        for figure in TARGETS
    }
    for name in ("alone", "beside"):
        row = report[name]
        missed += [
            f"{name} {figure}"
            for figure, target in TARGETS.items()
            if row[figure] > max(target, bare[figure])
        ]
        if row["connects"]["p99_ms"] > max(CONNECT_TARGET, bare["p99_ms"]):
            missed.append(f"{name} connects p99_ms")
    return missed


async def main(arguments):
    report = describe()
    seconds = arguments.seconds
    for name, measure in (
        ("echo", echo(seconds)),
        ("alone", service(seconds, slow=False)),
        ("beside", service(seconds, slow=True)),
        ("echo_again", echo(seconds)),
    ):
        async with asyncio.timeout(seconds + 60):
            report[name] = await measure
        show(name, report[name])
    report["missed"] = judge(report)
    write(arguments.json, report)
    if report["missed"]:
        print("missed:", ", ".join(report["missed"]))
    return 1 if report["missed"] and arguments.check else 0


def show(name, row):
    text = "  ".join(f"{key[:-3]} {row[key]:8.2f} ms" for key in TARGETS)
    if "connects" in row:
        one = row["connects"]
        text += f"   connects p50 {one['p50_ms']:.1f}  p99 {one['p99_ms']:.1f} ms"
        text += f"   closed for being slow {row['slow_closed']}"
    print(f"{name:<12} {text}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seconds", type=float, default=12.0)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        sys.exit(runner.run(main(parser.parse_args())))

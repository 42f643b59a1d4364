"""Benchmark of the gateway door: publishes to 1, 10 and 100 subscribers.

    python -m benchmarks.bench_gateway [--json FILE] [--publications N]

Everything is on this machine: the emulated gateway, the emulated table (ministack) and
the service behind its HTTP_PROXY integration. So the times are those of the code and of
the emulators, and say nothing of the network of AWS. For each number of subscribers
publications go out one after the other, each when all subscribers have the one before:

* ``p50`` and ``p99``: from the call of ``/api/publish`` until the last subscriber has
  the publication.
* ``calls``: requests to the table for each publication.
* ``cpu``: processor time of the service for each publication.

And for each operation of a client, with the compiled modules and with their interpreted
twins: ``posts`` that it gets, and ``cpu`` of the service, the events of its socket and
what it does by itself meanwhile included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import psutil
import websockets

from service.dev_gateway.laptop import laptop

KEY = "benchmark-of-the-gateway"
SUBSCRIBERS = (1, 10, 100)
HISTORY = {"history_size": 1000, "history_ttl": 600.0, "force_recovery": True}
OPERATIONS = 100  # of each kind
READING = 30.0  # s until a publication must be there


class Subscriber:
    """A client that has subscribed to the channel."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket
        self._waiting: list[str] = []
        self.posts = 0

    async def ask(self, **command: object) -> None:
        await self._socket.send(json.dumps(command))
        while json.loads(await self._next()).get("id") != command["id"]:
            pass

    async def publication(self) -> None:
        while "pub" not in json.loads(await self._next()).get("push", {}):
            pass

    async def _next(self) -> str:
        if not self._waiting:
            async with asyncio.timeout(READING):
                self._waiting = str(await self._socket.recv()).split("\n")
                self.posts += self._waiting != ["{}"]  # a ping is nobody's answer
        return self._waiting.pop(0)


async def attempts(api: httpx.AsyncClient) -> float:
    """Return the requests to the table so far."""
    text = (await api.get("/metrics")).text
    [line] = [x for x in text.splitlines() if x.startswith("steadwire_store_attempts")]
    return float(line.split()[-1])


def cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def listener(port: int) -> int:
    """Return the process of ours that listens on *port*."""
    for child in psutil.Process().children(recursive=True):
        for each in child.net_connections():
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port:
                return child.pid
    raise LookupError(port)


async def measure(
    count: int, publications: int, url: str, server: str, pid: int
) -> dict[str, float]:
    """Return the figures for *count* subscribers."""
    channel = f"c{count}"
    headers = {"X-API-Key": KEY}
    sockets = []
    async with httpx.AsyncClient(base_url=server, headers=headers, timeout=30) as api:
        subscribers = []
        for _ in range(count):
            socket = await websockets.connect(url, max_queue=None)
            sockets.append(socket)
            subscriber = Subscriber(socket)
            await subscriber.ask(id=1, connect={})
            await subscriber.ask(id=2, subscribe={"channel": channel})
            subscribers.append(subscriber)
        calls, spent, times = await attempts(api), cpu(pid), []
        for number in range(publications):
            begun = time.perf_counter()
            data = {"channel": channel, "data": {"n": number}}
            (await api.post("/api/publish", json=data)).raise_for_status()
            await asyncio.gather(*(each.publication() for each in subscribers))
            times.append(time.perf_counter() - begun)
        spent, calls = cpu(pid) - spent, await attempts(api) - calls
    for socket in sockets:
        await socket.close()
    return {
        "subscribers": count,
        "p50_ms": round(statistics.median(times) * 1000, 1),
        "p99_ms": round(sorted(times)[int(len(times) * 0.99)] * 1000, 1),
        "calls": round(calls / publications, 2),
        "cpu_ms": round(spent * 1000 / publications, 2),
    }


async def operations(times: int, url: str, pid: int) -> dict[str, dict[str, float]]:
    """Return the figures of each operation, done *times* times."""
    found: dict[str, dict[str, float]] = {}
    clients: list[Subscriber] = []

    async def each(
        name: str, act: Callable[[Subscriber, int], Awaitable[None]]
    ) -> None:
        posts, spent = sum(one.posts for one in clients), cpu(pid)
        for number, one in enumerate(clients):
            await act(one, number)
        found[name] = {
            "posts": round((sum(one.posts for one in clients) - posts) / times, 2),
            "cpu_ms": round((cpu(pid) - spent) * 1000 / times, 2),
        }

    sockets = []
    for _ in range(times):
        socket = await websockets.connect(url, max_queue=None)
        sockets.append(socket)
        clients.append(Subscriber(socket))

    async def publish(one: Subscriber, number: int) -> None:
        command = {"channel": f"o{number}", "data": {"n": 1}}
        await one.ask(id=3, publish=command)
        await one.publication()

    await each("connect", lambda one, _: one.ask(id=1, connect={}))
    await each(
        "subscribe", lambda one, n: one.ask(id=2, subscribe={"channel": f"o{n}"})
    )
    await each("publish, and hear it", publish)
    await each(
        "history",
        lambda one, n: one.ask(id=4, history={"channel": f"o{n}", "limit": 10}),
    )
    await each(
        "unsubscribe", lambda one, n: one.ask(id=5, unsubscribe={"channel": f"o{n}"})
    )
    for socket in sockets:
        await socket.close()
    return found


async def run(
    publications: int, *, pure: bool
) -> tuple[list[dict[str, float]], dict[str, dict[str, float]]]:
    """Return the figures of all numbers of subscribers, and of the operations."""
    environ = {
        **os.environ,
        **({"SERVICE_NO_SPEEDUPS": "1"} if pure else {}),
        "STEADWIRE_API_KEY": KEY,
        "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(HISTORY),
        "STEADWIRE_CONNECTIONS_ADDRESS_LIMIT": "1000",
        "STEADWIRE_LOG_LEVEL": "error",
        "STEADWIRE_GATEWAY_SWEEP_INTERVAL": "1000",
        "STEADWIRE_GATEWAY_PING_INTERVAL": "3000",
    }
    rows = []
    async with laptop(
        environ, port=0, server_port=0, table="", function=False, say=print
    ) as addresses:
        port = int(addresses.server.rpartition(":")[2])
        pid = listener(port)
        for count in () if pure else SUBSCRIBERS:
            row = await measure(
                count, publications, addresses.clients, addresses.server, pid
            )
            print(row, flush=True)
            rows.append(row)
        found = await operations(OPERATIONS, addresses.clients, pid)
        print("interpreted" if pure else "compiled", found, flush=True)
    return rows, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="keeps the figures")
    parser.add_argument("--publications", type=int, default=100)
    arguments = parser.parse_args()
    rows, compiled = asyncio.run(run(arguments.publications, pure=False))
    _, interpreted = asyncio.run(run(0, pure=True))
    if arguments.json:
        figures = {
            "subscribers": rows,
            "compiled": compiled,
            "interpreted": interpreted,
        }
        Path(arguments.json).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()

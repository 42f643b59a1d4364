"""Benchmark of agent runs: the relay beside the agent's own stream, read directly.

    python benchmarks/bench_runs.py [--json FILE] [--rounds N]

(a) Runs of 2,000 deltas, one at a time and eight at once, each delta a write of its
    own: events a second until the last viewer has the last event, and CPU µs an event,
    of the process that the viewer reads from: the agent itself (Falcon on stock
    Hypercorn) or Steadwire, which reads the agent, stores each event and streams it.
    The same with eight deltas a write, as where tokens come faster than writes.
(b) Time from the request to the first delta, one short run after the other: what the
    relay adds to it.
(c) Idle viewers of one thread: private memory of each.

All of (a) and (b) is measured as direct, relayed, direct again in one call. The store
is SQLite on a disk, with the durable default.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from load import (
    cpu,
    describe,
    figures,
    loop_factory,
    memory,
    percentile,
    process,
    write,
)

HERE = Path(__file__).parent
DELTAS = 2000
FIRSTS = 300
IDLE = 1000
OTHERS = 4  # events of a run that are no deltas


class Viewer(asyncio.Protocol):
    """One request whose answer is a stream; it counts the events in it.

    It closes with the run's end, unless it *stays*.
    """

    def __init__(self, request, stays=False):
        self._request = request
        self._stays = stays
        self._rest = b""
        self.events = 0
        self.begun = 0.0
        self.first_delta = 0.0
        self.told = asyncio.Event()  # something has come
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport
        self.begun = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data):
        if not self.told.is_set() and not data.startswith(b"HTTP/1.1 200"):
            raise SystemExit(data.decode())
        self.told.set()
        data = self._rest + data
        whole = data.rfind(b"\n\n") + 2
        self._rest = data[whole:] if whole > 1 else data
        done = data[:whole] if whole > 1 else b""
        self.events += done.count(b"data: ")
        if not self.first_delta and b"_CONTENT" in done:
            self.first_delta = time.perf_counter() - self.begun
        if self._stays:
            return
        if b'"RUN_FINISHED"' in done or b'"RUN_ERROR"' in done:
            self.transport.close()
            if b'"RUN_ERROR"' in done:
                self._fail(done[-500:].decode())
            elif not self.ended.done():
                self.ended.set_result(self.events)

    def connection_lost(self, error):
        self._fail(f"the stream was cut: {self._rest[-500:]!r}")

    def _fail(self, words):
        if not self.ended.done():
            self.ended.set_exception(SystemExit(words))


def request(method, path, body=b""):
    lines = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    lines += "Content-Type: application/json\r\n"
    lines += f"Content-Length: {len(body)}\r\n\r\n"
    return lines.encode() + body


async def view(port, text, stays=False):
    _, viewer = await asyncio.get_running_loop().create_connection(
        lambda: Viewer(text, stays), "127.0.0.1", port
    )
    return viewer


class Target:
    """Where a viewer reads from: a process, its port and the path of runs."""

    def __init__(self, pid, port, path):
        self.pid, self.port, self.path = pid, port, path
        self._runs = 0

    async def run(self, deltas, each):
        self._runs += 1
        asked = {
            "threadId": f"t{self._runs}",
            "runId": "r",
            "state": {},
            "messages": [],
            "tools": [],
            "context": [],
            "forwardedProps": {"deltas": deltas, "write": each},
        }
        return await view(
            self.port, request("POST", self.path, json.dumps(asked).encode())
        )

    async def throughput(self, at_once, each):
        """Return events a second and CPU µs an event of *at_once* runs."""
        before, start = cpu(self.pid), time.perf_counter()
        viewers = [await self.run(DELTAS, each) for _ in range(at_once)]
        counts = await asyncio.gather(*(viewer.ended for viewer in viewers))
        seconds = time.perf_counter() - start
        total = at_once * (DELTAS + OTHERS)
        if sum(counts) != total:
            raise SystemExit(f"{sum(counts)} events came, and {total} were sent")
        return {
            "events_per_second": total / seconds,
            "cpu_us": (cpu(self.pid) - before) / total * 1e6,
        }

    async def first_deltas(self, count):
        """Return the seconds to the first delta of runs one after the other."""
        found = []
        for _ in range(count):
            viewer = await self.run(1, 1)
            await viewer.ended
            found.append(viewer.first_delta)
        return found


async def best(target, rounds, at_once, each):
    """Return the round that took the least CPU: others share the machine."""
    found = [await target.throughput(at_once, each) for _ in range(rounds)]
    return min(found, key=lambda row: row["cpu_us"])


async def idle(server):
    """Return the private bytes of a viewer of a thread in which nothing happens."""
    finished = await server.run(10, 1)
    await finished.ended
    text = request("GET", "/agui/threads/t1/events")
    warm = [await view(server.port, text, stays=True) for _ in range(50)]
    await asyncio.gather(*(viewer.told.wait() for viewer in warm))
    for viewer in warm:
        viewer.ended.cancel()
        viewer.transport.abort()
    await asyncio.sleep(1.0)
    before = memory(server.pid)
    viewers = [await view(server.port, text, stays=True) for _ in range(IDLE)]
    await asyncio.gather(*(viewer.told.wait() for viewer in viewers))
    await asyncio.sleep(1.0)
    taken = memory(server.pid) - before
    if any(viewer.ended.done() for viewer in viewers):
        raise SystemExit("an idle viewer was cut off")
    for viewer in viewers:
        viewer.ended.cancel()
        viewer.transport.abort()
    return {"viewers": IDLE, "bytes": taken / IDLE}


def start(stack, directory):
    """Start an agent, and Steadwire in front of it."""
    agent = stack.enter_context(process([sys.executable, str(HERE / "sse_agent.py")]))
    url = f"http://127.0.0.1:{agent[1]}/run"
    environment = {
        "STEADWIRE_STORE_PATH": os.path.join(directory, "bench.db"),
        "STEADWIRE_CONNECTIONS_LIMIT": "20000",
        "STEADWIRE_CONNECTIONS_ADDRESS_LIMIT": "20000",
        "STEADWIRE_AGENTS": json.dumps([{"name": "helper", "url": url}]),
    }
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    server = stack.enter_context(process(command, environment))
    return Target(*agent, "/run"), Target(*server, "/agui/helper")


async def main(arguments):
    report = describe()
    report["runs"] = {}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        agent, server = start(stack, directory)
        order = (("direct", agent), ("relayed", server), ("direct again", agent))
        for target in (agent, server):
            await target.throughput(1, 1)  # warm
        for at_once, each in ((1, 1), (8, 1), (1, 8), (8, 8)):
            rows = report["runs"][f"{at_once} at once, {each} a write"] = {}
            for name, target in order:
                row = rows[name] = await best(target, arguments.rounds, at_once, each)
                print(
                    f"{at_once} at once, {each} a write, {name:<13}"
                    f"{row['events_per_second']:8,.0f} events/s"
                    f"{row['cpu_us']:8.1f} us an event",
                    flush=True,
                )
        report["first"] = {}
        for name, target in order:
            times = await target.first_deltas(arguments.firsts)
            report["first"][name] = figures(times)
            print(
                f"first delta, {name:<13}{1000 * percentile(times, 0.5):8.2f} ms p50"
                f"{1000 * percentile(times, 0.99):8.2f} ms p99",
                flush=True,
            )
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        _, server = start(stack, directory)
        report["idle"] = await idle(server)
        print(f"an idle viewer: {report['idle']['bytes'] / 1024:.1f} KiB")
    write(arguments.json, report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of each, the best counts"
    )
    parser.add_argument("--firsts", type=int, default=FIRSTS, help="short runs of (b)")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(parser.parse_args()))

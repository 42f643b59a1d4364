"""Benchmark of the server beside others: CPU of the server's process for each message.

    python benchmarks/bench_peers.py [--json FILE] [--check] [--seconds N] [--turns N]
        [--only NAME ...]

The same work for all, from one load generator, one server after the other, `--turns`
times round; the least of the turns counts, since other work can only add to it. A
message has 128 bytes. The servers are in benchmarks/peers/, installed by its `install`;
one that cannot be started is left out, by name. Each client has an address of its own
(127.0.x.y), as clients do: ours shares each turn of its event loop among addresses.

* echo: 100 clients send, and again when they have had that back.
* paced: the same clients send 2,000 messages a second, however late the answers are;
  with the latency from the *scheduled* send.
* fan-out: one client sends to 1,000, and again when all have had that.
* backlog: one client sends 500 messages at once to 100, which must get them in order.

An echo of ours is a publication: it is stored durably, comes back as a push, and its
command is answered. nchan keeps its messages in memory, the others keep nothing.

The generator counts a mark in the bytes that arrive and does not parse frames. Its own
CPU for each message is shown; a second divided by that is its ceiling. It is not what
is measured while that is above the rate that the server reached.

``--check`` exits with 1 when a target is missed; each is a ratio of this run.
"""

import argparse
import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from bench_server import ours
from load import ROOT, cpu, describe, frame, loop_factory, percentile, write

HERE = Path(__file__).parent
PEERS = HERE / "peers"
TOOLS = ROOT / ".tools" / "peers"
PYTHON = str(TOOLS / "venv" / "bin" / "python")

SIZE = 128  # bytes of a message
MARK = b"@!"
CLIENTS = 100  # of echo, paced and backlog
SUBSCRIBERS = 1000  # of fan-out
RATE = 2000  # messages a second of paced, all clients together
BURST = 500  # messages of a backlog
LONGEST = 60  # s for anything

TARGETS = {
    "fan-out against picows": 1.25,
    "own delivery against Socket.IO's echo": 2.0,
    "backlog, a second and core": 1_000_000,
}


def payload(number=0):
    """Return a message of `SIZE` bytes with its number behind the mark."""
    return f"{MARK.decode()}{number:06}".ljust(SIZE, "w")


class Generator(asyncio.Protocol):
    """One connection of the load generator.

    Attributes:
        delivered: Called with how many messages have arrived.
        kept: What arrived, if it is not None.
    """

    def __init__(self, path):
        self._path = path
        self._half = False
        self._waiting = None
        self._got = b""
        self.delivered = lambda count: None
        self.kept = None

    def connection_made(self, transport):
        self.transport = transport

    def connection_lost(self, error):
        if self._waiting is not None and not self._waiting[1].done():
            self._waiting[1].set_exception(ConnectionError("the server closed"))

    def data_received(self, data):
        if self._waiting is not None:
            self._got += data
            self._look()
            return
        if self.kept is not None:
            self.kept.append(data)
        count = data.count(MARK)
        if self._half and data[:1] == MARK[1:]:
            count += 1
        self._half = data[-1:] == MARK[:1]
        if count:
            self.delivered(count)

    def _look(self):
        wanted, future = self._waiting
        found = self._got.find(wanted)
        if found >= 0 and not future.done():
            self._got = self._got[found + len(wanted) :]
            future.set_result(None)

    async def until(self, wanted):
        """Wait until *wanted* is in what arrives."""
        self._waiting = wanted, asyncio.get_running_loop().create_future()
        self._look()
        async with asyncio.timeout(LONGEST):
            await self._waiting[1]

    async def open(self, opening):
        """Do the handshake, then send each text of *opening*, and wait for answers."""
        self.transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        await self.until(b"101 ")
        await self.until(b"\r\n\r\n")
        for text, answer in opening:
            if text:
                self.transport.write(frame(text))
            await self.until(answer)
        self._waiting = None


class Plain:
    """The wire of the servers that have no protocol of their own."""

    def path(self, fan, index):
        return "/fan" if fan else "/echo"

    def opening(self, fan, index):
        return ()

    def message(self, fan, index, text):
        return text


class SocketIo(Plain):
    def path(self, fan, index):
        return "/socket.io/?EIO=4&transport=websocket"

    def opening(self, fan, index):
        return ((None, b"0{"), ("40", b"40{"))

    def message(self, fan, index, text):
        return f'42["{"fan" if fan else "echo"}","{text}"]'


class Nchan(Plain):
    def path(self, fan, index):
        return "/pubsub/fan" if fan else f"/pubsub/own-{index}"


class Ours(Plain):
    def path(self, fan, index):
        return "/connection/websocket"

    def _channel(self, fan, index):
        return "fan" if fan else f"own-{index}"

    def opening(self, fan, index):
        channel = self._channel(fan, index)
        return (
            ('{"connect":{},"id":1}', b'"connect":{'),
            (f'{{"subscribe":{{"channel":"{channel}"}},"id":2}}', b'"subscribe":{'),
        )

    def message(self, fan, index, text):
        channel = self._channel(fan, index)
        return f'{{"publish":{{"channel":"{channel}","data":"{text}"}},"id":3}}'


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def started(command, directory):
    """Run a peer, which prints its version; give its process id, port and version."""
    port = free_port()
    words = [*command, str(port)]
    if command[0].endswith("nchan"):
        words.append(tempfile.mkdtemp(dir=directory))
    elif command[0] == PYTHON and len(command) == 3:
        words = [*command[:2], str(port), command[2]]
    server = subprocess.Popen(
        words,
        env={**os.environ, "NODE_PATH": str(TOOLS / "node_modules")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        version = server.stdout.readline().strip()
        end = time.monotonic() + 10
        while not answers(port):
            if server.poll() is not None or time.monotonic() > end:
                raise OSError("it does not start")
            time.sleep(0.05)
        yield server.pid, port, version
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server.stdout.close()


@contextmanager
def ourselves(environment, directory):
    with (
        tempfile.TemporaryDirectory(dir=directory) as place,
        ours(place, environment) as (pid, port),
    ):
        yield pid, port, describe()["versions"]["steadwire"]


def node(name):
    return lambda directory: started(["node", str(PEERS / name)], directory)


def python(name, *more):
    return lambda directory: started([PYTHON, str(PEERS / name), *more], directory)


SERVERS = {
    "ours": (Ours(), lambda place: ourselves({}, place)),
    "picows": (Plain(), python("bare_picows.py")),
    "Node ws": (Plain(), node("ws.cjs")),
    "Socket.IO": (SocketIo(), node("socket_io.cjs")),
    "ours, wsproto": (
        Ours(),
        lambda place: ourselves({"STEADWIRE_SERVER_WSPROTO": "true"}, place),
    ),
    "ours, pure Python": (
        Ours(),
        lambda place: ourselves({"SERVICE_NO_SPEEDUPS": "1"}, place),
    ),
    "uWebSockets.js": (Plain(), node("uwebsockets.cjs")),
    "nginx nchan": (Nchan(), lambda place: started([str(PEERS / "nchan")], place)),
    "uvicorn, websockets": (Plain(), python("bare_uvicorn.py", "websockets")),
    "uvicorn, wsproto": (Plain(), python("bare_uvicorn.py", "wsproto")),
    "python-socketio": (SocketIo(), python("python_socket_io.py")),
    "Channels, Daphne": (Plain(), python("django_channels.py")),
}


def address(index):
    """Return where client *index* comes from: each has an address of its own."""
    return f"127.0.{1 + index // 250}.{1 + index % 250}"


async def opened(wire, port, count, *, fan):
    """Return *count* clients that are ready, opened 50 at a time."""
    loop = asyncio.get_running_loop()
    clients = []
    while len(clients) < count:
        more = range(len(clients), min(len(clients) + 50, count))
        made = await asyncio.gather(
            *(
                loop.create_connection(
                    lambda index=index: Generator(wire.path(fan, index)),
                    "127.0.0.1",
                    port,
                    local_addr=(address(index), 0),
                )
                for index in more
            )
        )
        await asyncio.gather(
            *(
                client.open(wire.opening(fan, index))
                for index, (_, client) in zip(more, made, strict=True)
            )
        )
        clients += [client for _, client in made]
    return clients


class Spent:
    """CPU of server and generator, and the time, from its making on."""

    def __init__(self, pid):
        self._pid = pid
        self._server, self._own = cpu(pid), time.process_time()
        self._start = time.perf_counter()

    def figures(self, messages, **more):
        elapsed = time.perf_counter() - self._start
        own = time.process_time() - self._own
        used = cpu(self._pid) - self._server
        return {
            "cpu_us": used / messages * 1e6,
            "generator_us": own / messages * 1e6,
            "per_second": messages / elapsed,
            "busy": used / elapsed,
            "messages": messages,
            **more,
        }


async def echo(pid, clients, frames, seconds):
    """Let each client send again when it has had its message back."""
    count, until = 0, 0.0
    under_way = len(clients)
    over = asyncio.Event()

    def delivered(index):
        transport, data = clients[index].transport, frames[index]

        def again(arrived):
            nonlocal count, under_way
            count += arrived
            if time.perf_counter() < until:
                transport.write(data)
            else:
                under_way -= 1
                if not under_way:
                    over.set()

        return again

    for index, client in enumerate(clients):
        client.delivered = delivered(index)
    meter = Spent(pid)
    until = time.perf_counter() + seconds
    for client, data in zip(clients, frames, strict=True):
        client.transport.write(data)
    async with asyncio.timeout(LONGEST):
        await over.wait()
    return meter.figures(count)


async def paced(pid, clients, frames, seconds):
    """Send at `RATE`, however late the answers are."""
    scheduled = [[] for _ in clients]
    latencies = []

    def delivered(index):
        waiting = scheduled[index]

        def arrived(count):
            now = time.perf_counter()
            for _ in range(count):
                latencies.append(now - waiting.pop(0))

        return arrived

    for index, client in enumerate(clients):
        client.delivered = delivered(index)
    total, sent = int(seconds * RATE), 0
    meter = Spent(pid)
    start = time.perf_counter()
    while sent < total:
        due = min(total, int((time.perf_counter() - start) * RATE))
        while sent < due:
            index = sent % len(clients)
            scheduled[index].append(start + sent / RATE)
            clients[index].transport.write(frames[index])
            sent += 1
        await asyncio.sleep(0.0005)
    async with asyncio.timeout(LONGEST):
        while len(latencies) < total:
            await asyncio.sleep(0.005)
    return meter.figures(
        total,
        p50_ms=percentile(latencies, 0.50) * 1e3,
        p99_ms=percentile(latencies, 0.99) * 1e3,
    )


async def told(pid, clients, data, each, seconds):
    """Send *data*, *each* messages, when all clients have had the last ones."""
    got = wanted = publications = 0
    over = asyncio.Event()

    def delivered(count):
        nonlocal got
        got += count
        if got >= wanted:
            over.set()

    for client in clients:
        client.delivered = delivered
    meter = Spent(pid)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        over.clear()
        wanted += each * len(clients)
        publications += each
        clients[0].transport.write(data)
        async with asyncio.timeout(LONGEST):
            await over.wait()
    if got != wanted:
        raise SystemExit(f"{got} deliveries, and {wanted} expected")
    return meter.figures(got)


async def measured(wire, pid, port, seconds):
    """Return the figures of one server."""
    found = {}
    clients = await opened(wire, port, CLIENTS, fan=False)
    frames = [
        frame(wire.message(False, index, payload())) for index in range(len(clients))
    ]
    await echo(pid, clients, frames, 0.5)  # warm
    found["echo"] = await echo(pid, clients, frames, seconds)
    found["paced"] = await paced(pid, clients, frames, seconds)
    close(clients)

    clients = await opened(wire, port, CLIENTS, fan=True)
    burst = b"".join(
        frame(wire.message(True, 0, payload(number))) for number in range(BURST)
    )
    for client in clients[:2]:
        client.kept = []
    await told(pid, clients, burst, BURST, 0.1)
    in_order = [b"%06d" % number for number in range(BURST)]
    for client in clients[:2]:
        numbers = re.findall(MARK + rb"(\d{6})", b"".join(client.kept))
        if numbers != in_order * (len(numbers) // BURST):
            raise SystemExit("the backlog is out of order")
        client.kept = None
    found["backlog"] = await told(pid, clients, burst, BURST, seconds)
    close(clients)

    clients = await opened(wire, port, SUBSCRIBERS, fan=True)
    data = frame(wire.message(True, 0, payload()))
    await told(pid, clients, data, 1, 0.3)
    found["fan-out"] = await told(pid, clients, data, 1, seconds)
    close(clients)
    await asyncio.sleep(0.2)
    return found


def close(clients):
    for client in clients:
        client.delivered = lambda count: None
        client.transport.abort()


def ceiling(row):
    """Return the messages a second that the generator alone could do."""
    return 1e6 / row["generator_us"]


def ratios(rows):
    """Return the target ratios that can be formed, with what is wanted."""
    found = {}
    mine = rows["ours"]

    def add(name, value, *, most):
        wanted = TARGETS[name]
        met = value <= wanted if most else value >= wanted
        found[name] = {"value": value, "wanted": wanted, "met": met}

    if "picows" in rows:
        value = mine["fan-out"]["cpu_us"] / rows["picows"]["fan-out"]["cpu_us"]
        add("fan-out against picows", value, most=True)
    if "Socket.IO" in rows:
        value = mine["echo"]["cpu_us"] / rows["Socket.IO"]["echo"]["cpu_us"]
        add("own delivery against Socket.IO's echo", value, most=True)
    add("backlog, a second and core", 1e6 / mine["backlog"]["cpu_us"], most=False)
    return found


def least(turns):
    """Return of each kind of work the turn in which the server used least."""
    return {
        work: min((turn[work] for turn in turns), key=lambda row: row["cpu_us"])
        for work in turns[0]
    }


def main(arguments):
    report = describe()
    report["left_out"] = {}
    report["versions_of"] = {}
    turns = {}
    names = arguments.only or list(SERVERS)
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(arguments.turns):
            for name in names:
                if name in report["left_out"]:
                    continue
                wire, start = SERVERS[name]
                try:
                    with start(directory) as (pid, port, version):
                        report["versions_of"][name] = version
                        with asyncio.Runner(loop_factory=loop_factory()) as runner:
                            found = runner.run(
                                measured(wire, pid, port, arguments.seconds)
                            )
                except (OSError, TimeoutError) as error:
                    report["left_out"][name] = str(error) or "it does not answer"
                    print(f"{name} is left out: {error!r}", flush=True)
                    continue
                turns.setdefault(name, []).append(found)
                show(name, report["versions_of"][name], found)
    report["turns"] = turns
    report["rows"] = {name: least(each) for name, each in turns.items()}
    report["targets"] = ratios(report["rows"]) if "ours" in turns else {}
    for name, target in report["targets"].items():
        met = "met" if target["met"] else "missed"
        print(f"{name}: {target['value']:,.2f} (target {target['wanted']:,}), {met}")
    report["load"] = os.getloadavg()[0]
    write(arguments.json, report)
    missed = any(not target["met"] for target in report["targets"].values())
    return 1 if missed and arguments.check else 0


def show(name, version, found):
    print(f"{name} ({version})")
    for work, row in found.items():
        latency = f", p50 {row['p50_ms']:.2f} ms" if "p50_ms" in row else ""
        print(
            f"    {work:<8} {row['cpu_us']:8.2f} us{latency}, "
            f"{row['per_second']:,.0f} a second, server {row['busy']:.0%} busy; "
            f"generator {row['generator_us']:.2f} us, ceiling {ceiling(row):,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(SERVERS), metavar="NAME")
    sys.exit(main(parser.parse_args()))

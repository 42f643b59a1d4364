"""Benchmark of connections themselves: idle ones, how fast they come, and refreshes.

    python benchmarks/bench_connections.py [--json FILE] [--check] [--most N]
        [--only idle|connects|refreshes ...]

* idle: 1,000, then 3,000, then 10,000 clients of one server, each subscribed to a
  channel of its own, with the interval of production, 25 s, between pings. Private
  memory for each connection, as the difference to the server before it had any; CPU of
  the server's process for each connection and second over one whole interval, less that
  of the empty server. *more*: the same of those alone that a step added.
* connects: sockets that open, do the HTTP upgrade, send a connect and a subscribe, wait
  for each answer, and close: 50 at a time. CPU of the server for each, and how many
  there are in a second. Node's ws answers the same texts with themselves. In turns; the
  least of the turns counts, since other work can only add to it.
* refreshes: `bench_refresh`.

The clients are raw sockets on one epoll, in this process, whose own CPU is shown too.
``--check`` exits with 1 when a target is missed.
"""

import argparse
import asyncio
import os
import resource
import select
import socket
import sys
import tempfile
import time
from collections import deque
from contextlib import contextmanager

import bench_refresh
from bench_peers import node
from load import cpu, describe, frame, loop_factory, memory, process, write

COUNTS = (1000, 3000, 10_000)
INTERVAL = 25.0  # s between pings, as in production
AT_ONCE = 50
CONNECTS = 1500  # of a turn
TURNS = 3

TARGETS = {
    "memory, KiB": 12.0,
    "CPU, us a second": 5.0,
    "most to least of the CPU": 1.2,
    "most to least of the memory": 1.2,
    "connects of ws": 0.5,
    **{f"refresh {name}": most for name, most in bench_refresh.TARGETS.items()},
}

PONG = frame("{}")
PING = b"\x81\x02{}"
CONNECT = frame('{"connect":{},"id":1}')


def head(path):
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


class Peer:
    """One socket, and what it says: each text when the one before is answered."""

    __slots__ = ("got", "left", "socket")

    def __init__(self, port, texts):
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.connect_ex(("127.0.0.1", port))
        self.left = deque(texts)
        self.got = b""


class Clients:
    """Raw sockets on one epoll.

    Attributes:
        pongs: Pings that were answered (count).
    """

    def __init__(self, port, path):
        self._port = port
        self._head = head(path)
        self._epoll = select.epoll()
        self._peers = {}
        self._subscribed = 0
        self.pongs = 0

    def _open(self):
        number = self._subscribed
        self._subscribed += 1
        texts = (
            (self._head, b"\r\n\r\n"),
            (CONNECT, b'"id":1'),
            (frame(f'{{"subscribe":{{"channel":"c{number}"}},"id":2}}'), b'"id":2'),
        )
        peer = Peer(self._port, texts)
        self._peers[peer.socket.fileno()] = peer
        self._epoll.register(peer.socket, select.EPOLLIN | select.EPOLLOUT)

    def _step(self, timeout):
        """Answer what has come; return the sockets whose last text was answered."""
        ready = []
        for descriptor, events in self._epoll.poll(timeout, 512):
            peer = self._peers[descriptor]
            if events & select.EPOLLOUT:  # it has connected
                self._epoll.modify(descriptor, select.EPOLLIN)
                peer.socket.send(peer.left[0][0])
                continue
            data = peer.socket.recv(65536)
            if not data or data.startswith(b"\x88"):
                raise SystemExit(f"the server closed a connection: {data!r}")
            if not peer.left:
                pings = data.count(PING)
                self.pongs += pings
                peer.socket.send(PONG * pings)
                continue
            peer.got += data
            if peer.left[0][1] in peer.got:
                peer.got = b""
                peer.left.popleft()
                if peer.left:
                    peer.socket.send(peer.left[0][0])
                else:
                    ready.append(peer)
        return ready

    def open(self, count, keep=True):
        """Open so many, `AT_ONCE` at a time; *keep* them, or close each when it is."""
        opened = ready = 0
        while ready < count:
            while opened < min(count, ready + AT_ONCE):
                self._open()
                opened += 1
            for peer in self._step(10.0):
                ready += 1
                if not keep:
                    self._close(peer)

    def answer(self, seconds):
        """Answer pings for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._step(left)

    def _close(self, peer):
        del self._peers[peer.socket.fileno()]
        peer.socket.close()  # which takes it out of the epoll

    def close(self):
        for peer in list(self._peers.values()):
            self._close(peer)
        self._epoll.close()


@contextmanager
def ours(place):
    environment = {
        "STEADWIRE_STORE_PATH": os.path.join(place, "bench.db"),
        "STEADWIRE_CLIENT_PING_INTERVAL": str(INTERVAL),
        "STEADWIRE_CONNECTIONS_LIMIT": "20000",
        "STEADWIRE_CONNECTIONS_ADDRESS_LIMIT": "20000",
        # A machine with other work is not to make the server refuse connections.
        "STEADWIRE_OVERLOAD_LOOP_LAG": "0",
    }
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with process(command, environment) as (pid, port):
        yield pid, port, ""


def used(pid, clients, seconds):
    """Return the CPU seconds per second of the server, and our own."""
    before, own, begin = cpu(pid), time.process_time(), time.monotonic()
    clients.answer(seconds)
    elapsed = time.monotonic() - begin
    return (cpu(pid) - before) / elapsed, (time.process_time() - own) / elapsed


def idle(most):
    """Return a row for each of the counts, with what a connection costs."""
    rows = {}
    with tempfile.TemporaryDirectory() as place, ours(place) as (pid, port, _):
        warm = Clients(port, "/connection/websocket")
        warm.open(200, keep=False)
        warm.answer(3.0)
        warm.close()
        clients = Clients(port, "/connection/websocket")
        bare, _ = used(pid, clients, 5.0)
        empty = memory(pid)
        before, spent, size = 0, bare, empty
        for count in [each for each in COUNTS if each <= most]:
            clients.open(count - before)
            clients.answer(INTERVAL / 2)  # a first ping comes from then on
            pongs = clients.pongs
            load, own = used(pid, clients, INTERVAL)
            answered, occupied = clients.pongs - pongs, memory(pid)
            if abs(answered - count) > 0.1 * count:
                raise SystemExit(f"{answered} pongs, and {count} were expected")
            rows[str(count)] = row = {
                "bytes": (occupied - empty) / count,
                "bytes_more": (occupied - size) / (count - before),
                "cpu_us": (load - bare) / count * 1e6,
                "cpu_us_more": (load - spent) / (count - before) * 1e6,
                "empty_us": bare * 1e6,
                "generator_us": own / count * 1e6,
                "pongs": answered,
            }
            before, spent, size = count, load, occupied
            print(
                f"{count:6,} idle: {row['bytes'] / 1024:5.1f} KiB "
                f"(of those more {row['bytes_more'] / 1024:5.1f}), "
                f"{row['cpu_us']:5.2f} us a second (of those more "
                f"{row['cpu_us_more']:5.2f}); the clients' {row['generator_us']:5.2f}",
                flush=True,
            )
        clients.close()
    return rows


def connects_of(server, path):
    """Return what a connect costs the server."""
    with tempfile.TemporaryDirectory() as place, server(place) as (pid, port, version):
        clients = Clients(port, path)
        clients.open(300, keep=False)
        before, own, begin = cpu(pid), time.process_time(), time.monotonic()
        clients.open(CONNECTS, keep=False)
        elapsed = time.monotonic() - begin
        row = {
            "cpu_us": (cpu(pid) - before) / CONNECTS * 1e6,
            "per_second": CONNECTS / elapsed,
            "generator_us": (time.process_time() - own) / CONNECTS * 1e6,
            "version": version,
        }
        clients.close()
    return row


def connects():
    """Return what a connect costs, here and with Node's ws, and how many there are."""
    servers = {
        "ours": (ours, "/connection/websocket"),
        "Node ws": (node("ws.cjs"), "/echo"),
    }
    best = {}
    for _ in range(TURNS):
        for name, server in servers.items():
            row = connects_of(*server)
            kept = best.setdefault(name, row)
            kept["cpu_us"] = min(kept["cpu_us"], row["cpu_us"])
            kept["per_second"] = max(kept["per_second"], row["per_second"])
    for name, row in best.items():
        print(
            f"{name:8} {row['cpu_us']:6.0f} us of CPU a connect, "
            f"{row['per_second']:6.0f} a second; the clients' "
            f"{row['generator_us']:4.0f} us",
            flush=True,
        )
    return best


def refreshes():
    """Return the times of a hundred refreshes at once, with HS256."""
    private, pem = bench_refresh.keys()
    key = private["HS256"]
    with (
        tempfile.TemporaryDirectory() as place,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        rows = runner.run(bench_refresh.measure(place, 20, key, pem, "HS256"))
    for name, row in rows.items():
        times = ", ".join(f"{key[:3]} {value:.1f}" for key, value in row.items())
        print(f"a hundred refreshes, {name:12} {times} ms", flush=True)
    return rows


def targets(report):
    """Return, of each target that was measured, its figure and whether it is met."""
    found = {}
    if rows := report.get("idle"):
        spent = [row["cpu_us"] for row in rows.values()]
        sizes = [row["bytes"] / 1024 for row in rows.values()]
        found["memory, KiB"] = max(sizes)
        found["CPU, us a second"] = max(spent)
        found["most to least of the CPU"] = spent[-1] / spent[0]
        found["most to least of the memory"] = sizes[-1] / sizes[0]
    if rows := report.get("connects"):
        found["connects of ws"] = rows["Node ws"]["cpu_us"] / rows["ours"]["cpu_us"]
    if rows := report.get("refreshes"):
        for name in bench_refresh.TARGETS:
            found[f"refresh {name}"] = rows["ours"][name]
    result = {}
    for name, figure in found.items():
        most = TARGETS[name]
        met = figure >= most if name == "connects of ws" else figure <= most
        result[name] = {"figure": figure, "target": most, "met": met}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--most", type=int, default=COUNTS[-1])
    parts = {"idle", "connects", "refreshes"}
    parser.add_argument("--only", nargs="*", choices=sorted(parts), default=parts)
    chosen = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, chosen.most + 1000), hard))
    report = {**describe(), "load": os.getloadavg()[0]}
    if "idle" in chosen.only:
        report["idle"] = idle(chosen.most)
    if "connects" in chosen.only:
        report["connects"] = connects()
    if "refreshes" in chosen.only:
        report["refreshes"] = refreshes()
    report["targets"] = targets(report)
    for name, target in report["targets"].items():
        met = "met" if target["met"] else "MISSED"
        print(f"{name}: {target['figure']:.2f}, target {target['target']:g}, {met}")
    write(chosen.json, report)
    missed = any(not target["met"] for target in report["targets"].values())
    return 1 if chosen.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""A light WebSocket load generator, and the server processes it measures.

The client is an asyncio protocol with hand-made frames: a full WebSocket library in
the generator would be measured instead of the server, on two cores.
"""

import asyncio
import base64
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
MASK = b"\0\0\0\0"  # a zero mask costs nothing, and the server unmasks all the same


def loop_factory():
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def describe():
    """Return the machine and the versions, for the report."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    names = ("steadwire", "hypercorn", "falcon", "wsproto", "uvloop")
    versions = {name: metadata.version(name) for name in names}
    return {
        "machine": f"{model}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


@contextmanager
def process(command, environment=None):
    """Run a server; give its process id and port once it prints an address."""
    server = subprocess.Popen(
        command,
        cwd=ROOT,
        # Without the lines of each connection, 14 µs each, which are no message's.
        env={"STEADWIRE_LOG_LEVEL": "warning", **os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the log, a line for each connection
        text=True,
        start_new_session=True,
    )
    try:
        for line in server.stdout:
            found = re.search(r"://127\.0\.0\.1:(\d+)", line)
            if found:
                break
        else:
            raise SystemExit("the server did not start")
        yield server.pid, int(found[1])
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server.stdout.close()


def cpu(pid):
    """Return the CPU seconds that a process has used, from its own clock."""
    return time.clock_gettime(((~pid) << 3) | 2)


def memory(pid):
    """Return the resident bytes of a process that are its own."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    pages = re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+) kB", text, re.M)
    return sum(map(int, pages)) * 1024


def frame(message):
    """Return a masked frame: text of a str, binary of bytes."""
    data, first = message, 0x82
    if isinstance(message, str):
        data, first = message.encode(), 0x81
    size = len(data)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 65536:
        head = bytes((first, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, 0x80 | 127)) + size.to_bytes(8, "big")
    return head + MASK + data


class Client(asyncio.Protocol):
    """One connection; calls `received` with the content of each frame."""

    def __init__(self, path):
        self._path = path
        self._buffer = b""
        self.open = asyncio.get_running_loop().create_future()
        self.received = lambda text: None
        self.pongs = 0

    def connection_made(self, transport):
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def connection_lost(self, error):
        if not self.open.done():
            self.open.set_exception(ConnectionError("refused"))

    def send(self, data):
        self.transport.write(data)

    def data_received(self, data):
        buffer = self._buffer + data if self._buffer else data
        if not self.open.done():
            head, end, buffer = buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.open.set_exception(ConnectionError(head.decode()))
                return
            self.open.set_result(None)
        at = 0
        while len(buffer) - at >= 2:
            size = buffer[at + 1]
            start = at + 2
            if size == 126:
                size = int.from_bytes(buffer[start : start + 2], "big")
                start += 2
            elif size == 127:
                size = int.from_bytes(buffer[start : start + 8], "big")
                start += 8
            if len(buffer) < start + size:
                break
            if buffer[at] in (0x81, 0x82):
                content = buffer[start : start + size]
                if content == b"{}":
                    self.send(frame("{}"))
                    self.pongs += 1
                elif content == b"\0":
                    self.send(frame(b"\0"))
                else:
                    self.received(content)
            at = start + size
        self._buffer = buffer[at:]


async def connect(port, path, count):
    """Return *count* open clients, opened 50 at a time."""
    loop = asyncio.get_running_loop()
    clients = []
    while len(clients) < count:
        more = min(50, count - len(clients))
        made = await asyncio.gather(
            *(
                loop.create_connection(lambda: Client(path), "127.0.0.1", port)
                for _ in range(more)
            )
        )
        clients += [protocol for _, protocol in made]
        await asyncio.gather(*(client.open for client in clients[-more:]))
    return clients


async def exchange(client, text):
    """Send a frame and return the first frame that answers."""
    answer = asyncio.get_running_loop().create_future()
    client.received = lambda text: answer.done() or answer.set_result(text)
    client.send(frame(text))
    # Not wait_for: that of Python 3.11 may forget a cancellation.
    async with asyncio.timeout(10):
        reply = await answer
    client.received = lambda text: None
    return reply


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def figures(latencies):
    """Return the percentiles of latencies in seconds, as reports have them."""
    return {
        "p50_ms": 1000 * percentile(latencies, 0.50),
        "p99_ms": 1000 * percentile(latencies, 0.99),
        "count": len(latencies),
    }


def write(path, report):
    if path:
        Path(path).write_text(json.dumps(report, indent=2) + "\n")

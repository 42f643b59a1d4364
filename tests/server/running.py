"""The application of `served` as a process, and what can be seen of it outside."""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.process import ROOT, environment, launched
from tests.harness.raw import CLOSE, RawClient

__all__ = ["PATHS", "Process", "close_frame", "process_with", "until"]


async def until(
    condition: Callable[[], bool | Awaitable[bool]], within: float, what: str
) -> float:
    """Poll *condition* and return the seconds it took; fail after *within*."""
    started = time.monotonic()
    while True:
        answer = condition()
        if not isinstance(answer, bool):
            answer = await answer
        took = time.monotonic() - started
        if answer:
            return took
        assert took < within, f"not within {within} s: {what}"
        await asyncio.sleep(0.02)


class Process:
    """`tests.server.served` as a process that dies with the test.

    Attributes:
        echo: The path of a WebSocket that sends back what it is sent.
    """

    echo = "/echo"

    def __init__(self, settings: dict[str, Any], fault: str) -> None:
        server = {"port": 0, **settings}
        module = [sys.executable, "-m", "tests.server.served"]
        self._process = subprocess.Popen(
            launched(*module, json.dumps({"server": server}), fault),
            cwd=ROOT,
            env=environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._pumps = [
            threading.Thread(target=self._pump, args=pair, daemon=True)
            for pair in (
                (self._process.stdout, self.lines),
                (self._process.stderr, self.errors),
            )
        ]
        for pump in self._pumps:
            pump.start()

    @staticmethod
    def _pump(stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line.decode().rstrip("\n"))

    @property
    def port(self) -> int:
        return int(self.lines[0].rsplit(":", 1)[1])

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        def is_ready() -> bool:
            assert self._process.poll() is None, self.errors
            return any(line.startswith("ready ") for line in self.lines)

        await until(is_ready, 30, "ready")

    async def logged(self, text: str) -> None:
        """Wait until its log has *text*."""
        await until(lambda: text in "\n".join(self.errors), 30, text)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, within: float) -> int:
        """Return the exit status."""
        await until(lambda: self._process.poll() is not None, within, "exit")
        for pump in self._pumps:
            pump.join(5)
        return self._process.returncode

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
        for pump in self._pumps:
            pump.join(5)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()

    # --- from outside

    async def open(self, path: str, **options: Any) -> RawClient:
        return await RawClient.open(self.port, path=path, **options)

    async def state(self, query: str = "") -> dict[str, Any]:
        def get() -> Any:
            url = f"http://127.0.0.1:{self.port}/{query}"
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)

        state: dict[str, Any] = await asyncio.to_thread(get)
        return state

    def sockets(self) -> int:
        """Return how many accepted connections have a descriptor."""
        connections = psutil.Process(self._process.pid).net_connections("tcp")
        return sum(each.status != psutil.CONN_LISTEN for each in connections)

    async def freed(self, within: float = 10.0) -> float:
        return await until(lambda: self.sockets() == 0, within, "descriptor freed")

    def memory(self, what: str = "VmRSS") -> int:
        """Return bytes of memory: VmRSS now, VmHWM at most so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(what))
        return int(line.split()[1]) * 1024


async def close_frame(client: RawClient) -> tuple[int, str]:
    """Return code and reason of the close frame, after whatever comes before it."""
    while True:
        frame = await client.frame()
        if frame.opcode == CLOSE:
            (code,) = struct.unpack("!H", frame.payload[:2])
            return code, frame.payload[2:].decode()


PATHS: dict[str, tuple[dict[str, Any], str]] = {
    "frames": ({}, "/echo"),
    "frames, handed over": ({}, "/handed"),
    "wsproto": ({"wsproto": True}, "/echo"),
}
"""Ways to serve a WebSocket over HTTP/1.1: settings, and the path of an echo."""


def process_with(settings: dict[str, Any], *, paths: tuple[str, ...] = ()) -> Any:
    """Return a fixture of a ready process that the tests of a module share.

    Args:
        settings: Of the server.
        paths: Of `PATHS`; the tests run once for each.
    """

    @pytest.fixture(scope="module", params=paths or ["frames"])
    def server(request: pytest.FixtureRequest) -> Iterator[Process]:
        more, echo = PATHS[request.param]
        process = Process({**settings, **more}, "")
        process.echo = echo
        asyncio.run(process.ready())
        yield process
        process.kill()

    return server

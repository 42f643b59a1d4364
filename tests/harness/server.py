"""The real server as a process that can be killed and started again on its store."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

import psutil

from tests.harness.api import Api
from tests.harness.ports import free_port
from tests.harness.process import environment, launched
from tests.harness.raw import PATH, RawClient

__all__ = ["API_KEY", "Server", "ServerFailed", "opened"]

API_KEY = "key-of-the-tests"

opened: list[Server] = []
"""Servers that were started and not closed: their output explains a failed test."""

# Seconds from the start of the process until it says that it is ready.
_READY_WITHIN = 60.0

_READY = {
    "steadwire": re.compile(rf"ws://127\.0\.0\.1:(\d+){PATH}"),
    "hypercorn": re.compile(r"Running on http://127\.0\.0\.1:(\d+)"),
}


class ServerFailed(AssertionError):
    """The server did not start, or ended when it should not have."""


class Server:
    """One server, through all its lives: the port and the store stay the same.

    Attributes:
        port: Where it listens; 0 before the first start.
        message_size: Bytes that clients may send in one message.
        load: The share of a test's load that it is given.
        pipelined: Frames of one client that it answers in their order.
        key: Its API key.
        settings: STEADWIRE_* variables, beside those of `__init__`.
        starts: How often it has become ready.
    """

    message_size = 64 * 1024
    load = 1.0
    pipelined = 2

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str] | None = None,
        *,
        app: str = "",
        options: Sequence[str] = (),
        stderr: int = subprocess.PIPE,
    ) -> None:
        """Make a server, not started yet.

        Args:
            directory: Where it runs, and has its store.
            settings: STEADWIRE_* variables, and others.
            app: What Hypercorn's own command shall serve, as ``service.app:app``; by
                default ``steadwire serve`` runs.
            options: Of the command line.
            stderr: Where its log goes, as of `subprocess.Popen`.
        """
        self.port = 0
        self.key = API_KEY
        self.settings = {
            "STEADWIRE_STORE_PATH": str(directory / "steadwire.db"),
            "STEADWIRE_API_KEY": self.key,
            # All the clients of all the tests come from one address.
            "STEADWIRE_CONNECTIONS_LIMIT": "2000",
            "STEADWIRE_CONNECTIONS_ADDRESS_LIMIT": "2000",
            # A shared machine may hold a loop up for seconds; tests/e2e/test_overload
            # is about that.
            "STEADWIRE_OVERLOAD_LOOP_LAG": "0",
            # As in production; development has none.
            "STEADWIRE_CONNECTIONS_USER_LIMIT": "3",
            **(settings or {}),
        }
        self.starts = 0
        self._directory = directory
        self._app = app
        self._options = options
        self._stderr = stderr
        self._process: subprocess.Popen[bytes] | None = None
        self._pumps: list[threading.Thread] = []
        self._output: dict[str, bytearray] = {}
        self._changed = threading.Condition()

    # --- lives

    def spawn(self) -> None:
        """Start the process and return at once."""
        assert self._process is None, "it is running"
        self.port = self.port or free_port()
        # The working directory has no steadwire.toml, and takes whatever is written.
        port = {"STEADWIRE_SERVER_PORT": str(self.port)}
        if self._app:
            bind = f"127.0.0.1:{self.port}"
            arguments = ["-m", "hypercorn", self._app, "--bind", bind]
        else:
            arguments = ["-m", "service", "serve"]
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        if self not in opened:
            opened.append(self)
        self._process = subprocess.Popen(
            launched(sys.executable, *arguments, *self._options),
            cwd=self._directory,
            env=environment({**port, **self.settings}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        pipes = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        self._pumps = [
            self._pump(name, pipe, self._output[name])
            for name, pipe in pipes.items()
            if pipe
        ]

    def wait_ready(self) -> None:
        """Block until it says that it serves.

        Raises:
            ServerFailed: It ended first, or did not say so in time.
        """
        deadline = time.monotonic() + _READY_WITHIN
        with self._changed:
            while (port := self._announced_port()) is None:
                left = deadline - time.monotonic()
                ended = not any(pump.is_alive() for pump in self._pumps)
                if left <= 0 or ended:
                    what = "ended before it was" if ended else "took too long to be"
                    raise ServerFailed(f"the server {what} ready\n{self.output()}")
                # Bounded, because nothing notifies us of the end of a pump.
                self._changed.wait(min(left, 0.1))
        self.port = port
        self.starts += 1

    def start_blocking(self) -> Self:
        """Start and return when it serves."""
        self.spawn()
        self.wait_ready()
        return self

    async def start(self) -> Self:
        """Start and return when it serves; the event loop goes on meanwhile."""
        # Spawned in this thread: PR_SET_PDEATHSIG means the death of the thread.
        self.spawn()
        await asyncio.to_thread(self.wait_ready)
        return self

    def kill9(self) -> None:
        """Kill the whole process group with SIGKILL and wait until it is gone."""
        self._end(signal.SIGKILL, within=10.0)

    async def restart(self) -> Self:
        """Kill it with SIGKILL if it runs, and start it on the same port and store."""
        if self._process is not None:
            self.kill9()
        return await self.start()

    async def terminate(self, within: float = 20.0) -> int:
        """Send SIGTERM, wait for the end, and return the exit status."""
        return await asyncio.to_thread(self._end, signal.SIGTERM, within)

    def close(self) -> None:
        """Make sure that nothing of it is left."""
        if self in opened:
            opened.remove(self)
        if self._process is not None:
            self.kill9()

    def _end(self, number: signal.Signals, within: float) -> int:
        process = self._process
        assert process is not None, "it is not running"
        if process.poll() is None:
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        try:
            status = process.wait(within)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._forget(process)
            raise ServerFailed(
                f"the server did not end within {within} s of {number.name}"
                f"\n{self.output()}"
            ) from None
        self._forget(process)
        return status

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        for pump in self._pumps:
            pump.join(5.0)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        self._process = None

    # --- looking at it

    @property
    def running(self) -> bool:
        """True while the process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> psutil.Process:
        """The process that serves."""
        assert self._process is not None, "it is not running"
        return psutil.Process(self._process.pid)

    def descriptors(self) -> int:
        """Return how many file descriptors it has open."""
        return self.process.num_fds()

    def connections(self) -> int:
        """Return how many accepted sockets of its port it has open."""
        return sum(
            connection.status != psutil.CONN_LISTEN
            and connection.laddr.port == self.port
            for connection in self.process.net_connections("tcp")
        )

    def memory(self) -> int:
        """Return its resident memory in bytes."""
        rss: int = self.process.memory_info().rss
        return rss

    def owns_its_port(self) -> bool:
        """Return whether the process that we started is the one that listens."""
        return any(
            connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == self.port
            for connection in self.process.net_connections("tcp")
        )

    def output(self) -> str:
        """Return what it wrote in its present life, for a person to read."""
        return "\n".join(
            f"--- {name} of the server ---\n{bytes(text).decode(errors='replace')}"
            for name, text in self._output.items()
        )

    async def logged(self, text: str, times: int = 1) -> None:
        """Wait until it has written *text* that many times; a thread writes its log."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(
                    lambda: self.output().count(text) >= times, 30.0
                )

        assert await asyncio.to_thread(wait), self.output()

    def log(self) -> list[dict[str, Any]]:
        """Return the whole lines of its log, in its present life."""
        return [
            json.loads(line)
            for name, text in self._output.items()
            if name != "stdout"
            for line in bytes(text).decode().split("\n")[:-1]
        ]

    def _announced_port(self) -> int | None:
        text = b"\n".join(bytes(text) for text in self._output.values())
        found = _READY["hypercorn" if self._app else "steadwire"].search(
            text.decode(errors="replace")
        )
        return int(found[1]) if found else None

    def _pump(
        self, name: str, stream: IO[bytes] | socket.socket, output: bytearray
    ) -> threading.Thread:
        def pump() -> None:
            while data := os.read(stream.fileno(), 1 << 17):
                with self._changed:
                    output.extend(data)
                    self._changed.notify_all()

        thread = threading.Thread(target=pump, name=f"server {name}", daemon=True)
        thread.start()
        return thread

    # --- talking to it

    @property
    def socket_port(self) -> int:
        """The port of clients' sockets."""
        return self.port

    @property
    def url(self) -> str:
        """The address for SDKs."""
        return f"ws://127.0.0.1:{self.port}{PATH}"

    @property
    def api_url(self) -> str:
        """The address for server libraries."""
        return f"http://127.0.0.1:{self.port}/api"

    def api(self) -> Api:
        """Return a client of its HTTP API."""
        return Api(self.port, self.key)

    async def raw(self, *, connected: bool = True, **options: object) -> RawClient:
        """Open a raw WebSocket, with the connect command done unless told not to."""
        client = await RawClient.open(self.port, **options)  # type: ignore[arg-type]
        if connected:
            await client.connect()
        return client

    async def join(
        self, channel: str, **position: Any
    ) -> tuple[RawClient, dict[str, Any]]:
        """Connect and subscribe with both commands in one frame, as the SDKs do."""
        client = await self.raw(connected=False, within=60.0)
        await client.send(
            {"id": 1001, "connect": {}},
            {"id": 1002, "subscribe": {"channel": channel, **position}},
        )
        connected = await client.message(60.0)
        subscribed = await client.message(60.0)
        assert connected["id"] == 1001 and connected["connect"]["client"]
        assert subscribed["id"] == 1002, subscribed
        return client, subscribed["subscribe"]

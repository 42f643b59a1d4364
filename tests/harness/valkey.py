"""A Valkey or Redis server of the tests' own, on a free port of the loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from typing import Self

from tests.harness.ports import free_port
from tests.harness.process import environment, launched
from tests.harness.tools import missing

__all__ = ["Valkey", "close_shared", "shared"]

_READY_WITHIN = 30.0  # s


class Valkey:
    """One server, through all its lives; the port stays the same.

    Attributes:
        port: Where it listens.
    """

    key = "a key of at least thirty-two bytes"

    def __init__(self) -> None:
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """The STEADWIRE_* variables of a server that uses it."""
        return {"STEADWIRE_BROKER_URL": self.url, "STEADWIRE_BROKER_KEY": self.key}

    def start(self) -> Self:
        """Start it and wait until it answers."""
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        if program is None:
            missing("redis-server", "sudo apt-get install -y redis-server")
        where = ["--bind", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            launched(program, *where, "--save", "", "--appendonly", "no"),
            env=environment({}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _READY_WITHIN
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 5) as probe:
                    probe.sendall(b"PING\r\n")
                    if probe.recv(16).startswith(b"+PONG"):
                        return self
            except OSError:
                time.sleep(0.02)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        """Kill it; safe to call twice."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


_shared: list[Valkey] = []


def shared() -> Valkey:
    """Return the server that all tests share; start it if need be."""
    if not _shared:
        _shared.append(Valkey().start())
    return _shared[0]


def close_shared() -> None:
    """End it if it was started."""
    while _shared:
        _shared.pop().kill()

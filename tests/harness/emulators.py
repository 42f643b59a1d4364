"""Emulators of DynamoDB: each a process of its own, on a free port of the loopback.

What each is right about, and so is used for (measured; `docs/store.md`):

* ``ministack`` has transactions, their tokens, and items of failed conditions. Its one
  lock makes `TransactionConflict` impossible, and its Query reads a whole partition.
* ``dynalite`` has no transactions, no time to live and no items of failed conditions,
  but it counts capacity units as DynamoDB does.
* ``moto`` restores a snapshot of the table when a transaction is cancelled, also over
  what others wrote meanwhile, and does not know a request token again: it is right
  with one call at a time.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from service.settings import DynamodbSettings
from tests.harness.ports import free_port
from tests.harness.process import TOOLS, launched
from tests.harness.tools import missing, node

__all__ = ["Emulator", "close_all", "ministack", "running"]

_READY_WITHIN = 60.0  # s

_tables = itertools.count(1)


class Emulator:
    """One running emulator.

    Attributes:
        name: Of the program.
        port: On 127.0.0.1.
    """

    def __init__(self, name: str, command: list[str | Path], **settings: str) -> None:
        self.name = name
        self.port = 0
        self._command = command
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = tempfile.TemporaryDirectory(prefix=f"{name}-")

    @property
    def endpoint(self) -> str:
        """The URL for boto3."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def credentials(self) -> dict[str, str]:
        """The environment variables with which a process can talk to it."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def settings(self, **values: object) -> DynamodbSettings:
        """Return settings for it, with a table that no other test uses."""
        defaults = {
            "table": f"test-{os.getpid()}-{next(_tables)}",
            "region": "us-east-1",
            "endpoint": self.endpoint,
        }
        return DynamodbSettings(**{**defaults, **values})  # type: ignore[arg-type]

    def start(self) -> Self:
        """Start it and wait until it answers."""
        for _ in range(5):
            self.port = free_port()
            if self._start():
                return self
        raise AssertionError(f"{self.name} does not start:\n{self.output()}")

    def stop(self) -> None:
        """Kill it. What it stored is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kill it and delete what it wrote."""
        self.stop()
        self._directory.cleanup()

    def output(self) -> str:
        """Return what it wrote, for a person to read."""
        log = Path(self._directory.name, "log")
        return log.read_text(errors="replace") if log.exists() else ""

    def _start(self) -> bool:
        """Return whether it answers; False if somebody else took the port."""
        port = str(self.port)
        command = [str(word).replace("{port}", port) for word in self._command]
        with Path(self._directory.name, "log").open("ab") as log:
            self._process = subprocess.Popen(
                launched(*command),
                cwd=self._directory.name,
                env={
                    **os.environ,
                    **{k: v.replace("{port}", port) for k, v in self._settings.items()},
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _READY_WITHIN
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(self.endpoint, timeout=5).close()
            except urllib.error.HTTPError as error:
                error.close()
                return True
            except OSError:
                time.sleep(0.05)
            else:
                return True
        self.stop()
        return False


_running: dict[str, Emulator] = {}


def running(name: str) -> Emulator:
    """Return the emulator of that name, which all tests share; start it if need be."""
    if name not in _running:
        make = {"ministack": ministack, "dynalite": _dynalite, "moto": _moto}[name]
        _running[name] = make().start()
    return _running[name]


def close_all() -> None:
    """End those that were started."""
    while _running:
        _running.popitem()[1].close()


def ministack() -> Emulator:
    """Return ministack, not started."""
    program = TOOLS / "ministack" / "bin" / "ministack"
    if not program.is_file() or not (TOOLS / "ministack.stamp").is_file():
        missing("ministack", "tests/tools/install")
    return Emulator(
        "ministack",
        [program],
        BIND_HOST="127.0.0.1",
        GATEWAY_PORT="{port}",
        SFTP_ENABLED="0",
        IOT_MTLS_ENABLED="0",
    )


def _dynalite() -> Emulator:
    """Return dynalite, not started."""
    program = TOOLS / "node_modules" / "dynalite" / "cli.js"
    quick = ["--createTableMs", "0", "--deleteTableMs", "0", "--updateTableMs", "0"]
    where = ["--host", "127.0.0.1", "--port", "{port}"]
    return Emulator("dynalite", [node("dynalite"), program, *where, *quick])


def _moto() -> Emulator:
    """Return moto's server, not started."""
    program = Path(sys.executable).with_name("moto_server")
    if not program.is_file():
        missing("moto[server]", "pip install -e .[dev]")
    return Emulator(
        "moto", [sys.executable, program, "-H", "127.0.0.1", "-p", "{port}"]
    )

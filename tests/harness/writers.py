"""Processes that publish to one channel: ``python -m tests.harness.writers GIVEN``.

One program that forks, so that 32 of them fit on a small machine: each is a process of
its own, with the store and the broker of a server, and nothing else of one. Each has
publishers, who wait for each acknowledgement.

Prints the ids of the processes as JSON when all are ready, starts when its standard
input ends, and prints a line for each that was not killed: its acknowledgements
(offset, seconds since the epoch, what was published), what failed, how many of its
publications other processes have stored, and its requests to DynamoDB.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from service.broker.valkey import ValkeyBroker
from service.core.clock import SystemClock
from service.core.errors import StoreError
from service.core.model import Channel, Draft, RawJson
from service.core.ports import History
from service.settings import BrokerSettings, DynamodbSettings, Secret, StoreSettings
from service.stores.dynamodb.store import DynamodbStore
from tests.harness.process import environment, launched
from tests.harness.valkey import Valkey

__all__ = ["CHANNEL", "HISTORY", "Writers"]

CHANNEL = Channel("shared")
HISTORY = History(100_000, 3600.0)
PADDING = "x" * 280  # a chat message


async def _main(given: dict[str, Any], number: int, go: int, results: int) -> None:
    clock, rng = SystemClock(), random.Random(given["seed"] + number)
    broker = None
    if given["broker"]:
        secrets = {name: Secret(value) for name, value in given["broker"].items()}
        name = f"writer{number}"
        broker = ValkeyBroker(BrokerSettings(**secrets), name, clock, rng)
    settings = DynamodbSettings(**given["settings"])
    store = DynamodbStore(settings, StoreSettings(), clock, rng=rng, broker=broker)
    await store.start(lambda batch: None)
    while broker is not None and broker.fault() is not None:
        await asyncio.sleep(0.01)
    os.write(results, b"ready\n")
    await asyncio.to_thread(os.read, go, 1)  # until every process is
    end = time.monotonic() + given["seconds"]
    acknowledged: list[tuple[int, float, str]] = []
    failed: list[str] = []

    async def publish(name: int) -> None:
        serial = 0
        while time.monotonic() < end and serial < given["count"]:
            key = f"{number}-{name}-{serial}"
            serial += 1
            done = asyncio.get_running_loop().create_future()
            draft = Draft(RawJson(json.dumps([key, PADDING])))
            store.append(CHANNEL, draft, HISTORY, done.set_result)
            outcome = await done
            if isinstance(outcome, StoreError):
                failed.append(type(outcome).__name__)
            else:
                acknowledged.append((outcome.position.offset, time.time(), key))

    await asyncio.gather(*[publish(name) for name in range(given["publishers"])])
    line = json.dumps(
        {
            "process": number,
            "acknowledged": acknowledged,
            "failed": failed,
            "handed_over": store.handed_over,
            "attempts": store.client.attempts,
        }
    ).encode()
    await asyncio.to_thread(_write, results, line + b"\n")
    await store.close()


def _write(results: int, data: bytes) -> None:
    while data:
        data = data[os.write(results, data) :]


def _fork(given: dict[str, Any]) -> None:
    """Fork the writers; print their lines."""
    go, let_go = os.pipe()
    children = []
    for number in range(given["processes"]):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(let_go)
            os.close(read)
            try:
                asyncio.run(_main(given, number, go, write))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(write)
        children.append((pid, os.fdopen(read, "rb")))
    for _, results in children:
        assert results.readline() == b"ready\n"
    print(json.dumps([pid for pid, _ in children]), flush=True)
    sys.stdin.read()
    os.close(let_go)
    for pid, results in children:
        sys.stdout.write(results.read().decode())
        os.waitpid(pid, 0)


class Writers:
    """The processes, from outside.

    Attributes:
        pids: Of the processes, by number.
        results: What each has printed that was not killed.
    """

    def __init__(
        self,
        settings: DynamodbSettings,
        credentials: dict[str, str],
        broker: Valkey | None,
        **given: object,
    ) -> None:
        url = None if broker is None else {"url": broker.url, "key": broker.key}
        values = {
            "settings": msgspec.to_builtins(settings),
            "broker": url,
            "processes": 32,
            "publishers": 1,
            "seconds": 600.0,
            "count": 1_000_000,  # of each publisher, if there is time
            "seed": 1,
            **given,
        }
        self.results: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            launched(sys.executable, "-m", "tests.harness.writers", json.dumps(values)),
            env=environment(credentials),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.pids: list[int] = json.loads(self._process.stdout.readline())

    def begin(self) -> None:
        """Let all of them publish."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> None:
        """Wait for the results; blocks."""
        assert self._process.stdout is not None
        self.results = [json.loads(line) for line in self._process.stdout]
        assert self._process.wait() == 0

    def acknowledged(self) -> list[tuple[int, float, str]]:
        """Return offset, time and name of what was acknowledged, by time."""
        every = [tuple(one) for each in self.results for one in each["acknowledged"]]
        return sorted(every, key=lambda one: one[1])

    def close(self) -> None:
        """End all that still runs."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    _fork(json.loads(sys.argv[1]))

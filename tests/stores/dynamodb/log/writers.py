"""Processes that publish to one channel: ``python -m tests...log.writers GIVEN``.

One program that forks, so that 32 of them fit on a small machine: each is a process of
its own, with the store and the broker of a server, and nothing else of one. Each has
one publisher, who waits for each acknowledgement, and repeats with its idempotency key
what failed.

Prints ``ready``, starts when its standard input ends, and prints a line for each
process: its acknowledgements (offset, seconds since the epoch, what was published),
what failed, and how many of its publications other processes have stored.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time

import structlog

from service.broker.valkey import ValkeyBroker
from service.core.clock import SystemClock
from service.core.errors import StoreError
from service.core.model import Channel, Draft
from service.core.ports import History
from service.settings import BrokerSettings, DynamodbSettings, Secret, StoreSettings
from service.stores.dynamodb.store import DynamodbStore

HISTORY = History(100_000, 3600.0)
PADDING = "x" * 280  # a chat message


async def main(given, number, go, results):
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
    acknowledged, failed = [], []

    async def publish(name):
        serial = 0
        while time.monotonic() < end:
            key = f"{number}-{name}-{serial}"
            serial += 1
            while True:
                done = asyncio.get_running_loop().create_future()
                draft = Draft(
                    json.dumps([key, PADDING]),
                    idempotency_key=key if given["keys"] else "",
                )
                store.append(Channel("shared"), draft, HISTORY, done.set_result)
                outcome = await done
                if not isinstance(outcome, StoreError):
                    break
                failed.append(type(outcome).__name__)
                if not given["keys"]:
                    break
            if not isinstance(outcome, StoreError):
                acknowledged.append((outcome.position.offset, time.time(), key))

    await asyncio.gather(*[publish(name) for name in range(given["publishers"])])
    handover = store._handover
    counts = (handover.given, handover.taken) if handover else (0, 0)
    attempts = store.client.attempts
    line = json.dumps([number, acknowledged, failed, counts, attempts]).encode()
    await asyncio.to_thread(_write, results, line + b"\n")
    await store.close()


def _write(results, data):
    while data:
        data = data[os.write(results, data) :]


def forked(given):
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
                asyncio.run(main(given, number, go, write))
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(write)
        children.append((pid, os.fdopen(read, "rb")))
    for _, results in children:
        assert results.readline() == b"ready\n"
    print("ready", flush=True)
    sys.stdin.read()
    os.close(let_go)
    if given["kills"]:  # the first one, which is the owner's if it was started first
        time.sleep(given["kills"])
        os.kill(children[0][0], signal.SIGKILL)
        print(json.dumps(["killed", time.time()]), flush=True)
    for pid, results in children:
        sys.stdout.write(results.read().decode())
        os.waitpid(pid, 0)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    forked(json.loads(sys.argv[1]))

"""A publishing process: ``python -m tests.stores.dynamodb.log.publishers SETTINGS``.

Each publishes one after the other to one channel, and repeats with its idempotency key
what failed. Prints each acknowledgement, then at the end what each was told, as JSON.

``crash`` is ``["before" or "after", n]``: it kills itself with SIGKILL at its n-th
request that writes, before it is sent or when its answer is there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from service.core.clock import SystemClock
from service.core.errors import StoreError
from service.core.model import Channel, Draft
from service.core.ports import History
from service.settings import DynamodbSettings, StoreSettings
from service.stores.dynamodb.store import DynamodbStore
from tests.stores.dynamodb.support import Faults

HISTORY = History(10_000, 3600.0)


def crashing(when, number):
    """Return faults that kill this process."""
    faults = Faults()
    left = [number]

    def crash(operation):
        if operation == "TransactWriteItems":
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    (faults.before if when == "before" else faults.after).append(crash)
    return faults


async def main(settings, process, publishers, count, channel, crash):
    told = []
    faults = crashing(*crash) if crash else Faults()
    store = DynamodbStore(
        settings, StoreSettings(), SystemClock(), connect=faults.connect
    )
    await store.start(
        lambda batch: told.extend(
            (c.publication.offset, c.publication.data) for c in batch
        )
    )
    print("ready", flush=True)
    sys.stdin.read()  # until every process is

    async def publish(name):
        outcomes = []
        for n in range(count):
            key = f"{process}-{name}-{n}"
            while True:
                future = asyncio.get_running_loop().create_future()
                draft = Draft(json.dumps(key), idempotency_key=key)
                store.append(channel, draft, HISTORY, future.set_result)
                outcome = await future
                if not isinstance(outcome, StoreError):
                    break
            outcomes.append((outcome.position.offset, outcome.fresh, key))
            print(json.dumps([outcome.position.offset, key]), flush=True)
        return outcomes

    outcomes = await asyncio.gather(*[publish(n) for n in range(publishers)])
    await store.close()
    print(json.dumps({"told": told, "outcomes": outcomes}))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(
        main(
            DynamodbSettings(**given["settings"]),
            given["process"],
            given["publishers"],
            given["count"],
            Channel(given["channel"]),
            given.get("crash"),
        )
    )

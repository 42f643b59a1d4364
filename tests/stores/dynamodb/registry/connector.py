"""A process that admits connections, all at once, when it is told to.

    connector.py SETTINGS PREFIX COUNT USER

SETTINGS is JSON. The connections are PREFIX0, PREFIX1, …; USER is their user, or
``each`` for a user to each. It prints ``ready``, waits for a line, and prints
each outcome, as JSON: the clients evicted for it, or a close code.
"""

from __future__ import annotations

import asyncio
import json
import sys

from service.core.clock import SystemClock
from service.core.errors import Close, StoreError
from service.core.model import ClientId, UserId
from service.settings import DynamodbSettings
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.registry.connections import AdmissionLimits
from service.stores.dynamodb.registry.directory import DynamodbDirectory


async def main(settings: DynamodbSettings, prefix: str, count: int, user: str) -> None:
    clock = SystemClock()
    client = Client(settings, clock)
    await client.start()
    limits = AdmissionLimits(3, 100, "evict_lru", 86400.0)
    directory = DynamodbDirectory(client, settings, limits, clock)
    await directory.start()

    async def admit(name: str) -> object:
        whose = UserId(name if user == "each" else user)
        while True:
            try:
                answer = await directory.admit(whose, ClientId(name), "192.0.2.1")
            except StoreError:  # as a client does: it tries again
                await asyncio.sleep(0.2)
                continue
            return answer.code if isinstance(answer, Close) else answer

    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    names = [f"{prefix}{n}" for n in range(count)]
    answers = await asyncio.gather(*map(admit, names))
    print(json.dumps(dict(zip(names, answers, strict=True))), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    evicted = await directory.evictions()
    print(json.dumps(sorted(evicted)), flush=True)
    await client.close()


if __name__ == "__main__":
    asyncio.run(
        main(
            DynamodbSettings(**json.loads(sys.argv[1])),
            sys.argv[2],
            int(sys.argv[3]),
            sys.argv[4],
        )
    )

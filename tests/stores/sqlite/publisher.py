"""Append to a store as fast as it takes, and say what was acknowledged.

Each line on standard output is one acknowledged append: its channel, its offset and
its number. Meant to be killed.
"""

from __future__ import annotations

import asyncio
import os
import sys

from service.core.model import Appended, Channel, Draft
from service.core.ports import History
from service.settings import StoreSettings
from service.stores.sqlite.store import SqliteStore
from tests.clock import VirtualClock

HISTORY = History(1_000_000, 86400.0)


async def main(path: str) -> None:
    store = SqliteStore(StoreSettings(path=path), VirtualClock())
    await store.start(lambda committed: None)
    os.write(1, b"started\n")

    async def publish(task: int) -> None:
        loop = asyncio.get_running_loop()
        channel = Channel(f"c{task % 3}")
        number = 0
        while True:
            number += 1
            name = f'"{task}-{number}"'
            future = loop.create_future()
            store.append(channel, Draft(name), HISTORY, future.set_result)
            outcome = await future
            assert isinstance(outcome, Appended)
            # Unbuffered: what this process knows at its end is on the pipe.
            os.write(1, f"{channel} {outcome.position.offset} {name}\n".encode())

    await asyncio.gather(*[publish(task) for task in range(20)])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

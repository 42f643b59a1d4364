"""Keep entries in a store and die, or take them from its file beside others.

``keep PATH`` puts entries through the store and prints each key once it is kept.
``take PATH`` takes k0, k1, … from the file, and prints what it was given.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys

from service.settings import StoreSettings
from service.stores.sqlite.state import StateTable
from service.stores.sqlite.store import SqliteStore
from tests.clock import VirtualClock

KEYS = 200
NOW = 1_700_000_000_000  # ms; the wall of a new VirtualClock


async def keep(path: str) -> None:
    store = SqliteStore(StoreSettings(path=path), VirtualClock())
    await store.start(lambda committed: None)
    number = 0
    while True:
        await store.state.put("t", f"k{number}", f"v{number}", 60)
        # Unbuffered: what this process knows at its end is on the pipe.
        os.write(1, f"k{number}\n".encode())
        number += 1


def take(path: str) -> None:
    table = StateTable(sqlite3.connect(path, timeout=30.0, isolation_level=None))
    os.write(1, b"ready\n")
    sys.stdin.readline()
    found = [table.take("t", f"k{number}", NOW) for number in range(KEYS)]
    print("\n".join(value for value in found if value is not None), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "keep":
        asyncio.run(keep(sys.argv[2]))
    else:
        take(sys.argv[2])

from __future__ import annotations

import sqlite3

import pytest

from tests.stores.support import Bench, on_disk


@pytest.fixture
async def bench(tmp_path, clock):
    """Return a started store that does not wait long for a lock on its file."""
    bench = await Bench(on_disk(tmp_path, clock, lock_timeout=0.05), clock).start()
    yield bench
    await bench.store.close()


@pytest.fixture
def other(bench, tmp_path):
    """Return another connection to the database, in autocommit mode."""
    connection = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    yield connection
    connection.close()

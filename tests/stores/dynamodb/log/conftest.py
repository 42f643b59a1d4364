from __future__ import annotations

import pytest

from tests.stores.dynamodb.support import (
    Faults,
    StoreClock,
    TableStore,
)
from tests.stores.support import Bench


@pytest.fixture
async def open_bench(ministack, clock):
    """Open stores of processes that share one table."""
    settings = ministack.settings(timeout=60.0)
    opened = []

    async def open_bench(faults=None, timeout=60.0, make_clock=StoreClock, **bounds):
        values = {"table": settings.table, "timeout": timeout, **bounds}
        store = TableStore(
            ministack.settings(**values), make_clock(clock), faults, seed=len(opened)
        )
        bench = await Bench(store, clock).start()
        bench.faults = faults
        opened.append(bench)
        return bench

    yield open_bench
    for bench in opened:
        await bench.store.close()


@pytest.fixture
async def bench(open_bench):
    return await open_bench(Faults())


@pytest.fixture
async def other(open_bench):
    """Return a store in another process, without faults."""
    return await open_bench()

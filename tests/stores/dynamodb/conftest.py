from __future__ import annotations

import pytest

from tests.stores.dynamodb.support import (
    Faults,
    StoreClock,
    TableStore,
    client_for,
)
from tests.stores.support import Bench


@pytest.fixture
def faults():
    return Faults()


@pytest.fixture
def store_clock(clock):
    return StoreClock(clock)


@pytest.fixture(params=["ministack", "moto", "dynalite"])
def emulator(request):
    """Return each emulator, for what all of them have."""
    return request.getfixturevalue(request.param)


@pytest.fixture
async def make_client(store_clock, faults):
    """Make started clients, closed at the end; the settings are the first argument."""
    made = []

    async def make(settings, clock=store_clock, faults=faults):
        client = client_for(settings, clock, faults)
        made.append(client)
        await client.start()
        return client

    yield make
    for client in made:
        await client.close()


@pytest.fixture
async def open_bench(ministack, clock):
    """Open stores of processes that share one table."""
    settings = ministack.settings(timeout=60.0)
    opened = []

    async def open_bench(
        faults=None,
        timeout=60.0,
        make_clock=StoreClock,
        hearer=None,
        broker=None,
        **bounds,
    ):
        values = {"table": settings.table, "timeout": timeout, **bounds}
        store = TableStore(
            ministack.settings(**values),
            make_clock(clock),
            faults,
            seed=len(opened),
            broker=broker,
        )
        bench = await Bench(store, clock, hearer).start()
        bench.faults = faults
        opened.append(bench)
        return bench

    yield open_bench
    for bench in opened:
        await bench.store.close()

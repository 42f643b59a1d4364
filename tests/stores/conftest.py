from __future__ import annotations

import pytest

from tests.clock import VirtualClock
from tests.stores.support import DURABLE, FACTORIES, Bench


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture(params=FACTORIES.values(), ids=FACTORIES.keys())
async def bench(request, tmp_path, clock):
    bench = await Bench(request.param(tmp_path, clock), clock).start()
    yield bench
    await bench.store.close()


@pytest.fixture(params=DURABLE.values(), ids=DURABLE.keys())
async def reopen(request, tmp_path, clock):
    """Return a function that closes the store, if one is open, and opens it again."""
    opened = []

    async def reopen(**settings):
        if opened:
            await opened[-1].store.close()
        bench = Bench(request.param(tmp_path, clock, **settings), clock)
        opened.append(await bench.start())
        return bench

    yield reopen
    if opened:
        await opened[-1].store.close()

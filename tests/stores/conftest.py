from __future__ import annotations

import pytest

from tests.clock import VirtualClock
from tests.stores.support import (
    DURABLE,
    DURABLE_STATES,
    FACTORIES,
    STATES,
    Bench,
)


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


@pytest.fixture(params=STATES.values(), ids=STATES.keys())
async def opened(request, tmp_path, clock):
    """Return a State and what closes it."""
    state, close = await request.param(tmp_path, clock)
    yield state, close
    await close()


@pytest.fixture
def state(opened):
    return opened[0]


@pytest.fixture
def state_closed(opened):
    return opened[1]


@pytest.fixture(params=DURABLE_STATES.values(), ids=DURABLE_STATES.keys())
async def reopen_state(request, tmp_path, clock):
    """Return a function that closes the State, if one is open, and opens it again."""
    closing = []

    async def reopen():
        for close in closing:
            await close()
        state, close = await request.param(tmp_path, clock)
        closing[:] = [close]
        return state

    yield reopen
    for close in closing:
        await close()

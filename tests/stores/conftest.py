from __future__ import annotations

import pytest

from tests.clock import VirtualClock
from tests.stores.dynamodb.opening import EMULATORS, state_on
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


def state_factory(request):
    """Return what opens a State: of a name in STATES, or on an emulator."""
    if request.param in STATES:
        return STATES[request.param]
    return state_on(request.getfixturevalue(request.param))


@pytest.fixture(params=[*STATES, *EMULATORS])
async def opened(request, tmp_path, clock):
    """Return a State and what closes it."""
    state, close = await state_factory(request)(tmp_path, clock)
    yield state, close
    await close()


@pytest.fixture
def state(opened):
    return opened[0]


@pytest.fixture
def state_closed(opened):
    return opened[1]


@pytest.fixture(params=[*DURABLE_STATES, *EMULATORS])
async def reopen_state(request, tmp_path, clock):
    """Return a function that closes the State, if one is open, and opens it again."""
    closing = []
    factory = state_factory(request)

    async def reopen():
        for close in closing:
            await close()
        state, close = await factory(tmp_path, clock)
        closing[:] = [close]
        return state

    yield reopen
    for close in closing:
        await close()

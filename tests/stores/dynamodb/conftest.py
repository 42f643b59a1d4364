from __future__ import annotations

import pytest

from tests.stores.dynamodb.support import Faults, StoreClock, client_for


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

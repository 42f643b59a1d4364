from __future__ import annotations

import pytest

from tests.stores.dynamodb.registry.fleet import Fleet


@pytest.fixture(params=["ministack", "moto"])
def emulator(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
async def make_fleet(emulator, store_clock):
    made = []

    async def make(settings=None, **limits):
        fleet = Fleet(emulator.settings(**settings or {}), store_clock, **limits)
        made.append(fleet)
        return await fleet.create()

    yield make
    for fleet in made:
        await fleet.close()

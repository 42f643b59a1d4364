from __future__ import annotations

import pytest

from tests.stores.dynamodb.support import Faults


@pytest.fixture
async def bench(open_bench):
    return await open_bench(Faults())


@pytest.fixture
async def other(open_bench):
    """Return a store in another process, without faults."""
    return await open_bench()

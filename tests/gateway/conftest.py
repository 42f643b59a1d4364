"""The application of the tests' gateway, and environments on a table."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from service.core.clock import SystemClock
from tests.gateway.application import application
from tests.gateway.environments import SECRET, Environment, Environments
from tests.harness.emulators import Emulator

__all__ = ["application"]


@pytest.fixture(scope="module")
def credentials(ministack: Emulator) -> Iterator[None]:
    """Let this process talk to the emulated table."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ministack.credentials.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
async def environments(
    ministack: Emulator, credentials: None
) -> AsyncIterator[Environments]:
    """Return environments that share a table and a gateway."""
    environments = await Environments(ministack).create(SystemClock())
    yield environments
    await environments.close()


@pytest.fixture
async def one(environments: Environments) -> Environment:
    """Return an environment."""
    return await environments.open(SystemClock())


@pytest.fixture
async def other(environments: Environments) -> Environment:
    """Return another one."""
    return await environments.open(SystemClock())


@pytest.fixture
async def strict(environments: Environments) -> list[Environment]:
    """Environments that verify tokens."""
    settings = {"STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET}
    return [await environments.open(SystemClock(), **settings) for _ in range(2)]

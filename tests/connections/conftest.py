"""Worlds of connections that are stopped after the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from service.core.ports import Clock
from service.settings import Settings
from tests.clock import VirtualClock
from tests.world.loop import LoopWorld, settings

MakeWorld = Callable[..., Awaitable[LoopWorld]]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def make_world(clock: VirtualClock) -> AsyncIterator[MakeWorld]:
    worlds: list[LoopWorld] = []

    async def make(
        given: Settings | None = None, time: Clock | None = None
    ) -> LoopWorld:
        world = LoopWorld(given or settings(), time or clock)
        worlds.append(world)
        await world.start()
        return world

    yield make
    for world in worlds:
        await world.stop()


@pytest.fixture
async def world(make_world: MakeWorld) -> LoopWorld:
    return await make_world()

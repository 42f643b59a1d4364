"""A thousand at once come, talk, pong and go in any order: counts are exact. R27"""

from __future__ import annotations

import asyncio
import random

import pytest

from service.settings import ConnectionSettings
from tests.clock import VirtualClock
from tests.world.loop import LoopWorld, lines, settings

THOUSAND = 1000


@pytest.mark.requirement("R27", "B26", "B85")
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_thousand_at_once(seed: int) -> None:
    clock, rng = VirtualClock(), random.Random(seed)
    given = settings()
    limits = ConnectionSettings(limit=THOUSAND, address_limit=THOUSAND)
    given = type(given)(
        client=given.client,
        store=given.store,
        channels=given.channels,
        connections=limits,
    )
    world = LoopWorld(given, clock)
    await world.start()
    registry, stats = world.registry, world.liveness_stats
    ended = 0

    async def live() -> None:
        nonlocal ended
        connection, socket = world.open()
        await asyncio.sleep(0)
        connection.receive(lines({"id": 1, "connect": {}}))
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(0)
            step = rng.randrange(4)
            if step == 0:
                connection.receive(lines({"id": 5, "unsubscribe": {"channel": "x"}}))
            elif step == 1:
                assert connection.probe()
            elif step == 2:
                clock.advance(rng.random() * 0.01)
            elif connection.keepalive.pending:
                connection.receive("{}")
        assert socket.closes == []
        connection.gone(rng.choice([None, 1000, 1006]))
        connection.gone(1006)  # again: nothing happens
        ended += 1

    tasks = [asyncio.create_task(live()) for _ in range(THOUSAND)]
    while ended < THOUSAND:
        await asyncio.sleep(0)
        assert len(registry) <= THOUSAND
        assert registry.connected <= len(registry)
        pending = sum(one.keepalive.pending for one in registry)
        assert stats.sent == stats.answered + stats.orphaned + pending
    await asyncio.gather(*tasks)
    assert (len(registry), registry.connected, registry.users) == (0, 0, 0)
    assert stats.sent == stats.answered + stats.orphaned > 100
    assert clock.pending == []
    await world.stop()

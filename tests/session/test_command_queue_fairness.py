"""One connection's flood, and how long another one's command waits for it (G7).

Counted in portions of commands and turns of the loop, not in seconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from service.settings import (
    ChannelOptions,
    ChannelSettings,
    ConnectionSettings,
    Settings,
)
from tests.connections.conftest import clock, make_world  # noqa: F401
from tests.world.loop import FakeSocket, LoopWorld, lines, settings

OPEN = ChannelSettings(
    without_namespace=ChannelOptions(
        history_size=1000, history_ttl=3600.0, presence=True
    )
)
PORTION = 32


def crowded() -> Settings:
    many = ConnectionSettings(limit=1000, address_limit=1000)
    return msgspec.structs.replace(settings(channels=OPEN), connections=many)


def answered(socket: FakeSocket) -> int:
    return sum("id" in message for message in socket.messages)


@pytest.mark.requirement("B117")
@pytest.mark.parametrize(
    ("command", "count", "most"),
    [
        ({"unsubscribe": {"channel": "x"}}, 1400, PORTION),
        # With 400 members one is 13 units.
        ({"presence_stats": {"channel": "big"}}, 1400, 3),
        ({"presence": {"channel": "big"}}, 60, 3),
        ({"history": {"channel": "big", "limit": 300}}, 60, 4),
        ({"publish": {"channel": "other", "data": 1}}, 1400, PORTION),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_flood_in_one_frame_delays_another_by_a_portion(
    make_world: Callable[..., Any],  # noqa: F811
    command: dict[str, Any],
    count: int,
    most: int,
) -> None:
    world: LoopWorld = await make_world(crowded())
    for _ in range(400):
        await world.connect("big")
    flooder, flooded = await world.connect("big")
    other, socket = await world.connect()
    await world.publish("big", count=300)
    await world.quiet()
    before = answered(flooded)
    flooder.receive(lines(*({"id": n, **command} for n in range(10, 10 + count))))
    # Not one turn of the loop has passed: this is all that it holds it for.
    other.receive(lines({"id": 9, "presence_stats": {"channel": "small"}}))
    sent = len(socket.frames)
    await asyncio.sleep(0)
    assert len(socket.frames) == sent + 1
    assert json.loads(socket.frames[-1])["id"] == 9
    assert answered(flooded) - before <= most
    # It is answered in the end, if it reads.
    async with asyncio.timeout(10.0):
        while flooder.in_flight:
            await asyncio.sleep(0)
    await world.quiet()
    ids = [m["id"] for m in flooded.messages if m.get("id", 0) >= 10]
    assert ids == list(range(10, 10 + count))


async def test_two_floods_take_turns(
    make_world: Callable[..., Any],  # noqa: F811
) -> None:
    world: LoopWorld = await make_world(crowded())
    one, first = await world.connect()
    two, second = await world.connect()
    flood = lines(
        *({"id": n, "unsubscribe": {"channel": "x"}} for n in range(10, 2010))
    )
    one.receive(flood)
    two.receive(flood)
    while answered(first) < 1000:
        await asyncio.sleep(0)
        assert abs(answered(first) - answered(second)) <= 2 * PORTION
    assert answered(second) < 2001


async def test_a_flooder_that_leaves_is_forgotten(
    make_world: Callable[..., Any],  # noqa: F811
) -> None:
    world: LoopWorld = await make_world(crowded())
    connection, socket = await world.connect()
    flood = lines(
        *({"id": n, "unsubscribe": {"channel": "x"}} for n in range(10, 2010))
    )
    connection.receive(flood)
    connection.gone()
    await world.quiet()
    assert answered(socket) <= 1 + PORTION
    assert len(world.registry) == 0

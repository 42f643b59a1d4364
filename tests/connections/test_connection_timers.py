"""Each timer of a connection on the real scheduler, with short times.

The exact times are tested on the virtual clock. Here it is shown that the real clock
calls at all, and not before the time; how late a busy machine is, nobody asserts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from service.core.clock import SystemClock
from tests.connections.conftest import MakeWorld
from tests.world.loop import FakeSocket, LoopWorld, settings

SHORT = 0.05  # s


@pytest.fixture
async def world(make_world: MakeWorld) -> LoopWorld:
    short = settings(
        {
            "ping_interval": 4 * SHORT,
            "pong_timeout": SHORT,
            "heartbeat_timeout": 8 * SHORT,
            "stale_timeout": 2 * SHORT,
            "write_timeout": SHORT,
        },
        {"abort_timeout": 2 * SHORT},
    )
    return await make_world(short, SystemClock())


def now() -> float:
    return asyncio.get_running_loop().time()


async def elapsed(
    start: float, socket: FakeSocket, condition: Callable[[], object]
) -> float:
    """Return the time since *start*, which is before what begins a timer."""
    await socket.until(condition)
    return now() - start


# The clock's resolution: a timer may be called that much before its time.
EARLY = 0.002  # s


async def test_stale(world: LoopWorld) -> None:
    start = now()
    _, socket = world.open()
    took = await elapsed(start, socket, lambda: socket.closes)
    assert socket.closes == [3502]
    assert took >= 2 * SHORT - EARLY


async def test_ping(world: LoopWorld) -> None:
    start = now()
    _, socket = await world.connect()
    took = await elapsed(start, socket, lambda: "{}" in socket.frames)
    assert took >= 2 * SHORT - EARLY
    assert socket.messages[-1] == {}


async def test_pongs_keep_a_connection_and_their_absence_ends_it(
    world: LoopWorld,
) -> None:
    connection, socket = await world.connect()
    for count in (1, 2, 3):
        await socket.until(lambda count=count: socket.frames.count("{}") >= count)
        start = now()
        connection.receive("{}")
    took = await elapsed(start, socket, lambda: socket.closes)
    assert socket.closes == [3012]
    assert socket.frames.count("{}") > 3  # they go on, however late the machine is
    assert took >= 8 * SHORT - EARLY


@pytest.mark.requirement("B36")
async def test_write(world: LoopWorld) -> None:
    _, socket = await world.connect("ch")
    socket.stop_reading()
    started = asyncio.get_running_loop().time()
    await world.publish("ch")
    # A connection whose write was given up has left its channels.
    while world.subscriptions:
        await asyncio.sleep(SHORT / 10)
    assert asyncio.get_running_loop().time() - started >= SHORT - EARLY
    socket.read_on()
    await socket.until(lambda: socket.closes)
    assert socket.closes == [3009]


async def test_abort(world: LoopWorld) -> None:
    connection, socket = await world.connect()
    socket.stop_reading()
    start = now()
    connection.malformed()
    took = await elapsed(start, socket, lambda: socket.aborts)
    assert took >= 2 * SHORT - EARLY
    assert socket.closes == []


async def test_a_timer_that_was_taken_back_is_not_called(world: LoopWorld) -> None:
    connection, socket = await world.connect()
    connection.gone()
    await asyncio.sleep(6 * SHORT)
    assert "{}" not in socket.frames
    assert (socket.closes, socket.aborts) == ([], 0)

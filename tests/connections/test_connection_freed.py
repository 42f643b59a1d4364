"""Nothing is left of a connection once it is gone, whatever it was doing."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable

import pytest

from service.connections.connection import ClientConnection
from service.core.errors import SHUTDOWN
from tests.clock import VirtualClock
from tests.world.loop import FakeSocket, LoopWorld, lines

Doing = Callable[[LoopWorld, ClientConnection, FakeSocket], Awaitable[None]]


async def nothing(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    """Nothing."""


async def reading_a_join(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    world.store.gate.clear()
    ask = {"channel": "other", "recover": True}
    connection.receive(lines({"id": 9, "subscribe": ask}))
    await asyncio.sleep(0)


async def commands_waiting(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    world.store.gate.clear()
    connection.receive(
        lines(
            {"id": 8, "subscribe": {"channel": "other"}},
            {"id": 9, "unsubscribe": {"channel": "other"}},
            *({"id": n, "history": {"channel": "ch"}} for n in range(10, 60)),
        )
    )
    await asyncio.sleep(0)


async def publishing(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    connection.receive(lines({"id": 9, "publish": {"channel": "ch", "data": 1}}))


async def behind(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    await world.publish("far", size=200_000, count=5)
    world.store.gate.clear()
    connection.receive(
        lines({"id": 9, "subscribe": {"channel": "far", "recover": True}})
    )
    await asyncio.sleep(0)
    world.store.gate.set()
    await socket.reply(9)
    world.store.gate.clear()


async def writing(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    socket.stop_reading()
    await world.publish("ch", count=3)
    await asyncio.sleep(0)


async def put_but_not_flushed(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    connection.receive(lines({"id": 9, "unsubscribe": {"channel": "nothing"}}))


async def closing(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    connection.disconnect(SHUTDOWN)


async def closing_a_stuck_socket(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    await writing(world, connection, socket)
    connection.disconnect(SHUTDOWN)


async def closed(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    connection.disconnect(SHUTDOWN)
    await socket.until(lambda: socket.closes)


async def overflowing(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    socket.stop_reading()
    for _ in range(20):
        await world.publish("ch", size=100_000)


async def pinged(
    world: LoopWorld, connection: ClientConnection, socket: FakeSocket
) -> None:
    assert isinstance(world.clock, VirtualClock)
    world.clock.advance(25.0)


ALL = [
    nothing,
    reading_a_join,
    commands_waiting,
    publishing,
    behind,
    writing,
    put_but_not_flushed,
    closing,
    closing_a_stuck_socket,
    closed,
    overflowing,
    pinged,
]


async def open_and_go(world: LoopWorld, doing: Doing) -> weakref.ref[ClientConnection]:
    """Open a connection, let it be *doing* something, and end it from outside."""
    connection, socket = await world.connect("ch", "two")
    await doing(world, connection, socket)
    connection.gone()
    assert len(world.registry) == 0
    assert (world.channels, world.subscriptions) == (0, 0)
    frames = list(socket.frames)
    connection.gone()
    # Work that the connection does not own goes on; none of it reaches the socket.
    world.store.gate.set()
    connection.receive(lines({"id": 99, "subscribe": {"channel": "ch"}}))
    connection.disconnect(SHUTDOWN)
    await connection.ready()
    await world.publish("ch")
    await world.publish("ch")
    assert socket.frames == frames
    assert (world.channels, world.subscriptions) == (0, 0)
    return weakref.ref(connection)


@pytest.mark.requirement("B59", "L2")
@pytest.mark.parametrize("doing", ALL, ids=lambda doing: doing.__name__)
async def test_everything_is_freed(world: LoopWorld, doing: Doing) -> None:
    await world.assert_free(await open_and_go(world, doing))


@pytest.mark.requirement("L27")
async def test_a_stuck_close_ends_with_its_socket(world: LoopWorld) -> None:
    _, other = await world.connect()
    connection, socket = await world.connect("ch")
    socket.stop_reading()
    await world.publish("ch")
    connection.disconnect(SHUTDOWN)
    connection.gone()
    await world.quiet()
    assert socket.closes == []
    assert other.closes == []


@pytest.mark.requirement("B77", "L2")
async def test_a_hundred_flaps_leave_what_one_leaves(world: LoopWorld) -> None:
    for number in range(100):
        await open_and_go(world, ALL[number % len(ALL)])
    ref = await open_and_go(world, nothing)
    await world.assert_free(ref)


async def test_gone_while_the_first_connect_is_read(world: LoopWorld) -> None:
    connection, _ = world.open()
    ref = weakref.ref(connection)
    connection.gone()
    del connection
    await world.assert_free(ref)

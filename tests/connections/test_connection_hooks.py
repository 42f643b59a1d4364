"""Hooks as real coroutines: slow, failing, cancelled, or answering at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.core.errors import ErrorReply, ReplyError
from service.core.hooks import (
    ConnectResult,
    Handlers,
    PublishResult,
    RpcResult,
    SubscribeResult,
)
from tests.clock import VirtualClock
from tests.world.loop import FakeSocket, LoopWorld, lines, settings

KiB = 1024
INTERNAL = {"code": 100, "message": "internal server error", "temporary": True}

MakeHooked = Callable[..., Awaitable[LoopWorld]]


@pytest.fixture
async def hooked() -> AsyncIterator[MakeHooked]:
    worlds: list[LoopWorld] = []

    async def make(**hooks: Any) -> LoopWorld:
        world = LoopWorld(settings(), VirtualClock(), Handlers(**hooks))
        worlds.append(world)
        await world.start()
        return world

    yield make
    for world in worlds:
        await world.stop()


async def raises(event: Any) -> Any:
    raise ZeroDivisionError("a bug")


async def cancelled(event: Any) -> Any:
    # Awaiting a task that is cancelled raises `CancelledError` here; the hook's own
    # task is not cancelled by that.
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task


async def stops(event: Any) -> Any:
    raise StopAsyncIteration


async def times_out(event: Any) -> Any:
    raise TimeoutError


async def groups(event: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        group.create_task(raises(event))


COMMANDS = {
    "subscribe": {"channel": "ch"},
    "publish": {"channel": "ch", "data": 1},
    "rpc": {"method": "m"},
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("hook", [raises, cancelled, stops, times_out, groups])
async def test_a_hook_that_fails_admits_nobody_and_stops_nothing(
    hooked: MakeHooked, hook: Any, name: str
) -> None:
    world = await hooked(**{name: hook})
    connection, socket = await world.connect()
    connection.receive(
        lines(
            {"id": 5, name: COMMANDS[name]}, {"id": 6, "unsubscribe": {"channel": "x"}}
        )
    )
    assert await socket.reply(6) == {"id": 6, "unsubscribe": {}}
    assert (await socket.reply(5))["error"] == INTERNAL
    assert not connection.busy
    assert world.subscriptions == 0


@pytest.mark.parametrize("hook", [raises, cancelled, stops, times_out, groups])
async def test_a_connect_hook_that_fails_admits_nobody(
    hooked: MakeHooked, hook: Any
) -> None:
    world = await hooked(connect=hook)
    connection, socket = world.open()
    connection.receive(lines({"id": 1, "connect": {}}))
    assert (await socket.reply(1))["error"] == INTERNAL
    assert world.registry.connected == 0


async def test_a_slow_hook_holds_up_its_own_connection_only(
    hooked: MakeHooked,
) -> None:
    gate = asyncio.Event()

    async def slow(event: Any) -> PublishResult:
        await gate.wait()
        return PublishResult()

    world = await hooked(publish=slow)
    connection, socket = await world.connect("ch")
    connection.receive(
        lines(
            {"id": 8, "publish": {"channel": "ch", "data": 1}},
            {"id": 9, "publish": {"channel": "ch", "data": 2}},
        )
    )
    other, theirs = await world.connect("ch")
    other.receive(lines({"id": 5, "history": {"channel": "ch", "limit": 1}}))
    assert (await theirs.reply(5))["history"]["publications"] == []
    assert not any(m.get("id") in (8, 9) for m in socket.messages)
    gate.set()
    await socket.reply(9)
    await theirs.until(lambda: theirs.offsets("ch") == [1, 2])


async def test_a_hook_that_answers_after_its_connection_is_gone(
    hooked: MakeHooked,
) -> None:
    gate = asyncio.Event()

    async def slow(event: Any) -> ConnectResult:
        await gate.wait()
        return ConnectResult(user="ann", channels=("ch",))

    world = await hooked(connect=slow)
    connection, socket = world.open()
    connection.receive(lines({"id": 1, "connect": {}}))
    await asyncio.sleep(0)
    connection.gone()
    gate.set()
    await world.quiet()
    assert socket.frames == []
    assert (world.subscriptions, len(world.registry)) == (0, 0)


async def test_a_refusal_of_the_application_s_own(hooked: MakeHooked) -> None:
    async def refuse(event: Any) -> SubscribeResult:
        raise ReplyError(ErrorReply(1000, 'not "today"'))

    world = await hooked(subscribe=refuse)
    connection, socket = await world.connect()
    connection.receive(lines({"id": 5, "subscribe": {"channel": "ch"}}))
    assert await socket.reply(5) == {
        "id": 5,
        "error": {"code": 1000, "message": 'not "today"'},
    }


async def test_32_calls_run_at_once_and_no_more(hooked: MakeHooked) -> None:
    gate = asyncio.Event()
    running = 0
    most = 0

    async def call(event: Any) -> RpcResult:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return RpcResult(data=event.method)

    world = await hooked(rpc=call)
    connection, socket = await world.connect()
    connection.receive(
        lines(*({"id": n, "rpc": {"method": str(n)}} for n in range(10, 110)))
    )
    room = asyncio.ensure_future(connection.ready())
    for _ in range(5):
        await asyncio.sleep(0)
    assert (running, room.done()) == (32, False)
    gate.set()
    await room
    for number in range(10, 110):
        reply = await socket.reply(number)
        assert reply["rpc"] == {"data": str(number)}
    assert most == 32


# Server-side subscriptions.


async def owe(world: LoopWorld, channels: list[str]) -> None:
    for channel in channels:
        await world.publish(channel, size=30 * KiB, count=10)


async def recover(world: LoopWorld, channels: list[str]) -> FakeSocket:
    """Connect as a client that has seen nothing of its server-side channels yet."""
    connection, socket = world.open()
    subs = {channel: {"recover": True, "offset": 0} for channel in channels}
    connection.receive(lines({"id": 1, "connect": {"subs": subs}}))

    def complete() -> bool:
        return bool(socket.closes) or all(
            socket.offsets(c)[-1:] == [10] for c in channels
        )

    await world.caught_up(socket, complete)
    assert socket.closes == []
    for channel in channels:
        assert socket.offsets(channel) == list(range(1, 11))
    return socket


async def test_recovery_through_connect_subs_is_complete(hooked: MakeHooked) -> None:
    channels = ["a", "b"]

    async def admit(event: Any) -> ConnectResult:
        return ConnectResult(user="ann", channels=tuple(channels))

    world = await hooked(connect=admit)
    await owe(world, channels)
    socket = await recover(world, channels)
    subs = socket.messages[0]["connect"]["subs"]
    assert all(result["recovered"] is True for result in subs.values())
    assert socket.messages[0]["id"] == 1  # before any push


async def test_the_connect_reply_stays_below_a_megabyte(hooked: MakeHooked) -> None:
    # Python SDKs up to 0.6 close on a message over 1 MiB: they would reconnect, get
    # the same reply, and so on for ever. Each of ten channels may owe 256 KiB.
    channels = [f"ch{number}" for number in range(10)]

    async def admit(event: Any) -> ConnectResult:
        return ConnectResult(user="ann", channels=tuple(channels))

    world = await hooked(connect=admit)
    await owe(world, channels)
    socket = await recover(world, channels)
    longest = max(len(m.encode()) for f in socket.frames for m in f.split("\n"))
    assert longest < 1024 * KiB


async def test_live_publications_wait_for_the_connect_reply(
    hooked: MakeHooked,
) -> None:
    async def admit(event: Any) -> ConnectResult:
        return ConnectResult(user="ann", channels=("a", "b"))

    world = await hooked(connect=admit)
    await world.publish("a", count=2)
    world.store.gate.clear()
    connection, socket = world.open()
    connection.receive(lines({"id": 1, "connect": {}}))
    await asyncio.sleep(0)
    await world.publish("a", count=2)
    await world.publish("b")
    assert socket.frames == []
    world.store.gate.set()
    await socket.reply(1)
    await world.publish("a")
    await socket.until(lambda: socket.offsets("a")[-1:] == [5])
    subs = socket.messages[0]["connect"]["subs"]
    first = subs["a"]["offset"]
    assert socket.offsets("a") == list(range(first + 1, 6))
    assert socket.offsets("b") == list(range(subs["b"]["offset"] + 1, 2))


async def test_the_log_names_the_field_of_a_wrong_answer(hooked: MakeHooked) -> None:
    async def connect(event: Any) -> ConnectResult:
        return ConnectResult(user=42)  # type: ignore[arg-type]

    world = await hooked(connect=connect)
    connection, socket = world.open()
    with capture_logs() as logs:
        connection.receive(lines({"id": 1, "connect": {}}))
        reply = await socket.reply(1)
    assert reply["error"] == {"code": 100, "message": "internal server error"}
    (failed,) = [entry for entry in logs if entry["event"] == "a hook failed"]
    assert failed["reason"] == "user must be str, got int"
    assert world.context.metrics.hook_failures.values["connect"] == 1


@pytest.mark.requirement("R46")
async def test_wrong_answers_in_a_row_degrade_the_service(hooked: MakeHooked) -> None:
    user: list[Any] = [42, 42, 42, "ann"]

    async def connect(event: Any) -> ConnectResult:
        return ConnectResult(user=user.pop(0))

    world = await hooked(connect=connect)
    faults = []
    while user:
        connection, socket = world.open()
        connection.receive(lines({"id": 1, "connect": {}}))
        await socket.reply(1)
        faults.append(world.context.hook_health.fault() is not None)
    assert faults == [False, False, True, False]

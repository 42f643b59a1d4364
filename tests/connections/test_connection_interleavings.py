"""Orders of events that a real server cannot be made to take every time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from service.core.clock import SystemClock
from service.settings import ChannelOptions, ChannelSettings
from tests.clock import VirtualClock
from tests.connections.conftest import MakeWorld
from tests.world.loop import FakeSocket, LoopWorld, lines, settings

HOUR = 3600.0


def options(**given: Any) -> ChannelSettings:
    kept = {"history_size": 1000, "history_ttl": 60.0, "force_recovery": True}
    return ChannelSettings(without_namespace=ChannelOptions(**{**kept, **given}))


async def recover(
    world: LoopWorld, offset: int, epoch: str = "", number: int = 2
) -> tuple[FakeSocket, dict[str, Any]]:
    """Come back to the channel ``ch`` and return the socket and the result."""
    connection, socket = await world.connect()
    ask = {"channel": "ch", "recover": True, "offset": offset, "epoch": epoch}
    connection.receive(lines({"id": number, "subscribe": ask}))
    reply = await socket.reply(number)
    return socket, reply["subscribe"]


async def epoch_of(world: LoopWorld) -> str:
    _, socket = await world.connect("ch")
    epoch: str = socket.messages[-1]["subscribe"]["epoch"]
    return epoch


# Publish during subscribe.


@pytest.mark.requirement("R45")
@pytest.mark.parametrize("recovering", [False, True])
async def test_publish_during_subscribe(world: LoopWorld, recovering: bool) -> None:
    # Before the read, between read and arrival, and after: each exactly once.
    await world.publish("ch", count=3)
    world.store.gate.clear()
    connection, socket = await world.connect()
    ask: dict[str, Any] = {"channel": "ch"}
    if recovering:
        ask |= {"recover": True, "offset": 1}
    connection.receive(lines({"id": 2, "subscribe": ask}))
    while not world.store.waiting:
        await asyncio.sleep(0)
    await world.publish("ch", count=2)
    assert len(socket.messages) == 1
    world.store.gate.set()
    result = (await socket.reply(2))["subscribe"]
    await world.publish("ch", count=2)
    await socket.until(lambda: socket.offsets("ch")[-1:] == [7])
    first = result["offset"] + 1
    assert first == (2 if recovering else 4)
    assert socket.offsets("ch") == list(range(first, 8))


async def test_a_subscriber_s_own_publishes_in_the_frame_of_its_subscribe(
    world: LoopWorld,
) -> None:
    for gated in (False, True):
        connection, socket = await world.connect()
        if gated:
            world.store.gate.clear()
        connection.receive(
            lines(
                {"id": 2, "publish": {"channel": "ch", "data": {"ch": "ch"}}},
                {"id": 3, "subscribe": {"channel": "ch"}},
                {"id": 4, "publish": {"channel": "ch", "data": {"ch": "ch"}}},
            )
        )
        await socket.reply(2)
        await socket.reply(4)
        world.store.gate.set()
        result = (await socket.reply(3))["subscribe"]
        await world.publish("ch")
        await socket.until(lambda socket=socket: len(socket.offsets("ch")) > 0)
        top = 6 if gated else 3
        await socket.until(
            lambda socket=socket, top=top: socket.offsets("ch")[-1:] == [top]
        )
        assert socket.offsets("ch") == list(range(result["offset"] + 1, top + 1))
        connection.gone()


# Unsubscribe while history is being read.


async def test_unsubscribe_while_a_piece_of_a_recovery_is_being_read(
    make_world: MakeWorld,
) -> None:
    world = await make_world(settings({"recovery_size": 200}))
    await world.publish("ch", size=60, count=20)
    connection, socket = await world.connect()
    world.store.gate.clear()
    connection.receive(
        lines({"id": 2, "subscribe": {"channel": "ch", "recover": True}})
    )
    world.store.gate.set()
    await socket.reply(2)
    world.store.gate.clear()
    while not world.store.waiting:  # the next piece is being read
        await asyncio.sleep(0)
        if socket.offsets("ch")[-1:] == [20]:
            raise AssertionError("it was done before the gate was shut")
    connection.receive(lines({"id": 3, "unsubscribe": {"channel": "ch"}}))
    assert await socket.reply(3) == {"id": 3, "unsubscribe": {}}
    seen = list(socket.frames)
    world.store.gate.set()
    await world.publish("ch")
    await world.quiet()
    assert socket.frames == seen
    assert connection.behind == {}
    assert world.subscriptions == 0


async def test_unsubscribe_while_a_history_reply_is_being_read(
    world: LoopWorld,
) -> None:
    connection, socket = await world.connect("ch")
    await world.publish("ch", count=3)
    world.store.gate.clear()
    ask = {"channel": "ch", "limit": -1, "reverse": True}
    connection.receive(
        lines({"id": 5, "history": ask}, {"id": 6, "unsubscribe": {"channel": "ch"}})
    )
    await world.publish("ch")
    world.store.gate.set()
    await socket.reply(6)
    history = (await socket.reply(5))["history"]
    assert len(history["publications"]) >= 3
    await world.publish("ch")
    await world.quiet()
    ids = [m.get("id") for m in socket.messages]
    assert ids.index(5) < ids.index(6) == len(ids) - 1


# Time.


async def test_history_expires_between_disconnect_and_recovery(
    make_world: MakeWorld,
) -> None:
    world = await make_world(settings(channels=options(history_ttl=60.0)))
    epoch = await epoch_of(world)
    clock = world.store_clock
    assert isinstance(clock, VirtualClock)
    await world.publish("ch", count=3)
    clock.advance(30.0)
    await world.publish("ch", count=2)

    clock.advance(29.0)  # all are there still
    socket, result = await recover(world, 2, epoch)
    assert result["recovered"] is True
    assert socket.offsets("ch") == [3, 4, 5]

    clock.advance(1.5)  # 3 is gone, 4 and 5 are not
    _, result = await recover(world, 2, epoch)
    assert "recovered" not in result
    assert result["was_recovering"] is True
    assert result["offset"] == 5
    assert "publications" not in result
    socket, result = await recover(world, 3, epoch)
    assert result["recovered"] is True
    assert socket.offsets("ch") == [4, 5]

    clock.advance(HOUR)  # all are gone; who missed nothing is recovered all the same
    _, result = await recover(world, 3, epoch)
    assert "recovered" not in result
    assert result["epoch"] == epoch
    _, result = await recover(world, 5, epoch)
    assert result["recovered"] is True
    await world.publish("ch")
    socket, result = await recover(world, 5, epoch)
    assert result["recovered"] is True
    assert socket.offsets("ch") == [6]


async def test_what_expires_while_it_is_read_is_not_half_a_recovery(
    make_world: MakeWorld,
) -> None:
    world = await make_world(settings({"recovery_size": 200}, channels=options()))
    clock = world.store_clock
    assert isinstance(clock, VirtualClock)
    await world.publish("ch", size=60, count=20)
    connection, socket = await world.connect()
    world.store.gate.clear()
    connection.receive(
        lines({"id": 2, "subscribe": {"channel": "ch", "recover": True}})
    )
    world.store.gate.set()
    await socket.reply(2)
    clock.advance(61.0)
    await socket.until(
        lambda: (
            socket.offsets("ch")[-1:] == [20]
            or any("unsubscribe" in m.get("push", {}) for m in socket.messages)
        )
    )
    offsets = socket.offsets("ch")
    assert offsets == list(range(1, len(offsets) + 1))


@pytest.mark.requirement("R33")
@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_the_wall_clock_jumps_an_hour(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    given = settings({"ping_interval": 5.0, "pong_timeout": 1.0}, channels=options())
    world = await make_world(given, SystemClock())
    epoch = await epoch_of(world)
    connection, socket = await world.connect("ch")
    await world.publish("ch", count=3)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    await world.publish("ch", count=2)
    await socket.until(lambda: socket.offsets("ch") == [1, 2, 3, 4, 5])
    back, result = await recover(world, 1, epoch)
    assert result["recovered"] is True
    assert back.offsets("ch") == [2, 3, 4, 5]
    connection.receive(lines({"id": 9, "history": {"channel": "ch", "limit": -1}}))
    history = (await socket.reply(9))["history"]
    assert [p["offset"] for p in history["publications"]] == [1, 2, 3, 4, 5]
    assert socket.closes == []


async def test_timers_stay_where_they_were_when_the_wall_clock_jumps(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await make_world(settings({"stale_timeout": 0.1}), SystemClock())
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - HOUR)
    _, socket = world.open()
    await socket.until(lambda: socket.closes)
    assert socket.closes == [3502]


# Two connections of one user, and ten pipelined pairs.


async def test_two_connections_of_one_user_do_not_touch_each_other(
    world: LoopWorld,
) -> None:
    one, first = await world.connect("ch")
    _, second = await world.connect("ch")
    await world.publish("ch")
    one.receive(lines({"id": 9, "unsubscribe": {"channel": "ch"}}))
    await world.publish("ch")
    assert first.offsets("ch") == [1]
    assert second.offsets("ch") == [1, 2]
    one.receive(lines({"id": 10, "subscribe": {"channel": "ch", "recover": True}}))
    await first.reply(10)
    one.gone()
    await world.publish("ch")
    assert second.offsets("ch") == [1, 2, 3]
    assert world.subscriptions == 1


async def test_ten_pipelined_pairs_while_others_publish(world: LoopWorld) -> None:
    await world.publish("ch", count=3)
    connection, socket = await world.connect()
    publisher = asyncio.ensure_future(world.publish("ch", count=50))
    commands = []
    for number in range(10, 30, 2):
        ask = {"channel": "ch", "recover": True, "offset": 0}
        commands.append({"id": number, "subscribe": ask})
        commands.append({"id": number + 1, "unsubscribe": {"channel": "ch"}})
    connection.receive(lines(*commands))
    await socket.reply(29)
    await publisher
    inside = False
    expected = 1
    for message in socket.messages[1:]:
        if "subscribe" in message:
            assert message["subscribe"]["recovered"] is True
            inside, expected = True, 1
            found = message["subscribe"].get("publications", [])
        elif "unsubscribe" in message:
            inside, found = False, []
        else:
            assert inside, message
            found = [message["push"]["pub"]]
        for publication in found:
            assert publication["offset"] == expected
            expected += 1
    assert [m["id"] for m in socket.messages[1:] if "id" in m] == list(range(10, 30))
    assert world.subscriptions == 0

"""A connection on the real hub, outbox and store."""

from __future__ import annotations

import asyncio
import json

import pytest

from service.core.errors import SHUTDOWN
from service.core.model import ClientId
from tests.clock import VirtualClock
from tests.connections.conftest import MakeWorld
from tests.world.loop import LoopWorld, lines, settings


async def test_the_first_frame_of_a_javascript_client(world: LoopWorld) -> None:
    connection, socket = world.open()
    connection.receive(
        lines(
            {"connect": {"name": "js"}, "id": 1},
            {"subscribe": {"channel": "ch", "flag": 1}, "id": 2},
        )
    )
    reply = await socket.reply(2)
    assert [m["id"] for m in socket.messages] == [1, 2]
    assert socket.messages[0] == {
        "id": 1,
        "connect": {"client": "client1", "version": "test", "ping": 25, "pong": True},
    }
    result = reply["subscribe"]
    assert result.pop("epoch") not in ("", "_")
    assert result == {"recoverable": True, "positioned": True, "offset": 0}


async def test_a_publisher_that_is_subscribed_gets_its_own_push(
    world: LoopWorld,
) -> None:
    connection, socket = await world.connect("ch")
    connection.receive('{"id":9,"publish":{"channel":"ch","data":{"a" : [1,\n2]}}}')
    assert await socket.reply(9) == {"id": 9, "publish": {}}
    await socket.until(lambda: any("push" in m for m in socket.messages))
    pushes = [m for m in socket.messages if "push" in m]
    assert pushes == [
        {
            "push": {
                "channel": "ch",
                "pub": {
                    "data": {"a": [1, 2]},
                    "offset": 1,
                    "info": {"user": "", "client": "client1"},
                },
            }
        }
    ]


@pytest.mark.requirement("B132")
async def test_publications_reach_the_channel_s_members_only(world: LoopWorld) -> None:
    _, one = await world.connect("one")
    _, both = await world.connect("one", "two")
    _, two = await world.connect("two")
    for channel in ("one", "two", "one", "none"):
        await world.publish(channel)
    assert (one.offsets("one"), one.offsets("two")) == ([1, 2], [])
    assert (both.offsets("one"), both.offsets("two")) == ([1, 2], [1])
    assert (two.offsets("one"), two.offsets("two")) == ([], [1])


async def test_200_publishes_on_one_connection_keep_their_order(
    world: LoopWorld,
) -> None:
    connection, socket = await world.connect("ch")
    numbers = range(10, 210)
    for first in range(10, 210, 50):
        connection.receive(
            lines(
                *(
                    {"id": n, "publish": {"channel": "ch", "data": {"n": n}}}
                    for n in range(first, first + 50)
                )
            )
        )
        await connection.ready()
    await socket.reply(209)
    await socket.until(
        lambda: len([m for m in socket.messages if "push" in m]) == len(numbers)
    )
    pushes = [m["push"]["pub"] for m in socket.messages if "push" in m]
    assert [p["offset"] for p in pushes] == list(range(1, 201))
    assert [p["data"]["n"] for p in pushes] == list(numbers)
    replies = [m["id"] for m in socket.messages if "publish" in m]
    assert replies == list(numbers)


async def test_after_unsubscribe_not_one_push(world: LoopWorld) -> None:
    connection, socket = await world.connect("ch")
    await world.publish("ch")
    connection.receive(lines({"id": 9, "unsubscribe": {"channel": "ch"}}))
    await world.publish("ch")
    assert await socket.reply(9) == {"id": 9, "unsubscribe": {}}
    assert socket.offsets("ch") == [1]
    assert world.channels == 0


async def test_unsubscribe_while_history_is_being_read(world: LoopWorld) -> None:
    _, _ = await world.connect()
    await world.publish("ch", count=5)
    connection, socket = await world.connect()
    world.store.gate.clear()
    connection.receive(
        lines(
            {"id": 5, "subscribe": {"channel": "ch", "recover": True}},
            {"id": 6, "unsubscribe": {"channel": "ch"}},
        )
    )
    await world.publish("ch")
    assert len(socket.messages) == 1
    world.store.gate.set()
    await socket.reply(6)
    await world.publish("ch")
    assert [m.get("id") for m in socket.messages] == [1, 5, 6]
    assert world.subscriptions == 0


async def test_subscribe_and_unsubscribe_pipelined_ten_times(world: LoopWorld) -> None:
    for gated in (False, True):
        connection, socket = await world.connect()
        if gated:
            world.store.gate.clear()
        commands = []
        for number in range(10, 30, 2):
            commands.append({"id": number, "subscribe": {"channel": "ch"}})
            commands.append({"id": number + 1, "unsubscribe": {"channel": "ch"}})
        connection.receive(lines(*commands))
        world.store.gate.set()
        await socket.reply(29)
        assert [m["id"] for m in socket.messages[1:]] == list(range(10, 30))
        assert not any("error" in m for m in socket.messages)
        assert world.subscriptions == 0


async def test_an_unrecoverable_position_is_refused_and_left(world: LoopWorld) -> None:
    await world.publish("ch")
    for gated in (False, True):
        connection, socket = await world.connect()
        if gated:
            world.store.gate.clear()
        ask = {"channel": "ch", "recover": True, "epoch": "other", "flag": 3}
        connection.receive(lines({"id": 2, "subscribe": ask}))
        world.store.gate.set()
        reply = await socket.reply(2)
        assert reply["error"] == {"code": 112, "message": "unrecoverable position"}
        assert world.subscriptions == 0
        assert not connection.behind
        connection.receive(lines({"id": 3, "subscribe": {"channel": "ch"}}))
        reply = await socket.reply(3)
        assert reply["subscribe"]["offset"] == 1
        connection.gone()


async def test_a_slow_store_holds_up_the_reader_and_nobody_else(
    world: LoopWorld,
) -> None:
    world.store.gate.clear()
    connection, socket = await world.connect()
    commands = [{"id": n, "history": {"channel": "ch"}} for n in range(10, 60)]
    connection.receive(lines(*commands))
    room = asyncio.ensure_future(connection.ready())
    _, other = await world.connect()
    assert other.messages[0]["id"] == 1
    assert not room.done()
    world.store.gate.set()
    await room
    await socket.reply(59)
    assert sorted(m["id"] for m in socket.messages[1:]) == list(range(10, 60))


async def test_room_ends_with_the_connection(world: LoopWorld) -> None:
    world.store.gate.clear()
    connection, _ = await world.connect()
    commands = [{"id": n, "history": {"channel": "ch"}} for n in range(10, 60)]
    connection.receive(lines(*commands))
    room = asyncio.ensure_future(connection.ready())
    await asyncio.sleep(0)
    assert not room.done()
    connection.disconnect(SHUTDOWN)
    await room


async def test_a_frame_that_is_no_command_closes(world: LoopWorld) -> None:
    for frame in ("", "\n", "[]", "{", '{"id":1}\n\n{"id":2}', '{"id":-1}', "nul"):
        connection, socket = await world.connect()
        connection.receive(frame)
        await socket.until(lambda socket=socket: socket.closes)
        assert socket.closes == [3501], frame
        connection.receive(lines({"id": 7, "history": {"channel": "ch"}}))
        assert [m["id"] for m in socket.messages] == [1]


async def test_a_binary_frame_closes(world: LoopWorld) -> None:
    connection, socket = await world.connect()
    connection.malformed()
    await socket.until(lambda: socket.closes)
    assert socket.closes == [3501]


async def test_what_was_answered_goes_out_before_the_close_frame(
    world: LoopWorld,
) -> None:
    connection, socket = world.open()
    connection.receive(lines({"id": 1, "connect": {}}, {"id": 2, "nonsense": {}}))
    assert socket.closes == []
    await socket.until(lambda: socket.closes)
    assert [m["id"] for m in socket.messages] == [1]


@pytest.mark.requirement("R29", "B82")
async def test_pings_at_their_times_and_the_pong_s_absence(
    world: LoopWorld, clock: VirtualClock
) -> None:
    connection, socket = await world.connect()
    start = clock.now()
    at: list[float] = []
    while not at:
        clock.advance(0.25)
        await world.quiet()
        if "{}" in socket.frames:
            at.append(clock.now() - start)
    assert 12.5 <= at[0] <= 25.25
    connection.receive("{}")
    clock.advance(24.5)
    await world.quiet()
    assert socket.frames.count("{}") == 1
    clock.advance(0.5)
    await world.quiet()
    assert socket.frames.count("{}") == 2
    clock.advance(7.9)
    await world.quiet()
    assert socket.closes == []
    clock.advance(0.1)
    await world.quiet()
    assert socket.frames.count("{}") == 3  # it is asked once more
    clock.advance(60.0 - 33.1)
    await world.quiet()
    assert socket.closes == []
    clock.advance(0.1)
    await world.quiet()
    assert socket.closes == [3012]


async def test_a_connection_that_never_says_a_word(
    world: LoopWorld, clock: VirtualClock
) -> None:
    _, socket = world.open()
    clock.advance(9.99)
    await world.quiet()
    assert socket.closes == []
    clock.advance(0.01)
    await world.quiet()
    assert socket.closes == [3502]


async def test_an_old_gap_ends_in_2500_and_the_client_comes_back(
    make_world: MakeWorld,
) -> None:
    world = await make_world(settings({"recovery_size": 100}))
    await world.publish("ch", size=60, count=10)
    connection, socket = await world.connect()
    socket.stop_reading()
    connection.receive(
        lines({"id": 2, "subscribe": {"channel": "ch", "recover": True}})
    )
    await world.quiet()
    await world.store.remove("ch")  # type: ignore[arg-type]
    socket.read_on()
    await socket.until(lambda: "unsubscribe" in socket.messages[-1].get("push", {}))
    assert socket.messages[-1] == {
        "push": {
            "channel": "ch",
            "unsubscribe": {"code": 2500, "reason": "insufficient state"},
        }
    }
    offset = socket.offsets("ch")[-1]
    assert offset < 10
    ask = {"channel": "ch", "recover": True, "offset": offset}
    connection.receive(lines({"id": 3, "subscribe": ask}))
    result = (await socket.reply(3))["subscribe"]
    assert result["was_recovering"] is True
    assert "recovered" not in result
    assert result["offset"] == 10


@pytest.mark.requirement("R36")
async def test_every_connection_has_an_id_of_its_own(world: LoopWorld) -> None:
    _, one = await world.connect()
    _, two = await world.connect()
    ids = [socket.messages[0]["connect"]["client"] for socket in (one, two)]
    assert ids == [ClientId("client1"), ClientId("client2")]
    assert json.dumps(ids)

"""Clients that are slow or far behind: which are closed, and which are not."""

from __future__ import annotations

import pytest

from tests.clock import VirtualClock
from tests.connections.conftest import MakeWorld
from tests.world.loop import LoopWorld, lines, settings

KiB = 1024


async def recover(world: LoopWorld, channels: list[str], since: int = 0) -> None:
    """Come back with every channel in one frame, as the JavaScript SDK does."""
    tops = {}
    for channel in channels:
        _, probe = await world.connect(channel)
        tops[channel] = probe.messages[-1]["subscribe"]["offset"]
    connection, socket = world.open()
    connection.receive(
        lines(
            {"id": 1, "connect": {}},
            *(
                {
                    "id": number,
                    "subscribe": {"channel": channel, "recover": True, "offset": since},
                }
                for number, channel in enumerate(channels, 2)
            ),
        )
    )

    def complete() -> bool:
        return bool(socket.closes) or all(
            socket.offsets(channel)[-1:] == [top] for channel, top in tops.items()
        )

    await connection.ready()
    await world.caught_up(socket, complete)
    assert socket.closes == []
    for channel, top in tops.items():
        assert socket.offsets(channel) == list(range(since + 1, top + 1))
    replies = [m for m in socket.messages if "subscribe" in m]
    assert all(m["subscribe"]["recovered"] is True for m in replies)
    assert len(replies) == len(channels)


async def test_recovery_of_one_channel_in_pieces(world: LoopWorld) -> None:
    await world.publish("ch", size=10 * KiB, count=300)
    await recover(world, ["ch"])


@pytest.mark.requirement("B65")
async def test_recovery_of_five_channels_at_once(world: LoopWorld) -> None:
    # 1.5 MiB are owed, and a megabyte may wait: were each of the five answered with
    # its 256 KiB at once, the client would be closed for being slow, come back, and
    # so on for ever.
    channels = [f"ch{number}" for number in range(5)]
    for channel in channels:
        await world.publish(channel, size=30 * KiB, count=10)
    await recover(world, channels)


async def test_recovery_of_as_many_channels_as_one_client_may_have(
    world: LoopWorld,
) -> None:
    channels = [f"ch{number}" for number in range(128)]
    for channel in channels:
        await world.publish(channel, size=10 * KiB)
    await recover(world, channels)


async def test_recovery_of_five_channels_from_the_database(world: LoopWorld) -> None:
    channels = [f"ch{number}" for number in range(5)]
    for channel in channels:
        await world.publish(channel, size=30 * KiB, count=30)
    world.store.gate.clear()  # nothing is answered from memory
    world.store.peek = lambda *_: None  # type: ignore[method-assign]
    world.store.gate.set()
    await recover(world, channels)


async def test_recovery_of_text_that_is_not_ascii(world: LoopWorld) -> None:
    # Forty of these are 256 Ki characters, but a megabyte.
    text = "\N{GRINNING FACE}" * 6535
    data = f'{{"ch":"ch","x":"{text}"}}'
    connection, socket = await world.connect()
    for number in range(10, 100):
        connection.receive(
            f'{{"id":{number},"publish":{{"channel":"ch","data":{data}}}}}'
        )
        await connection.ready()
    await socket.reply(99)
    await recover(world, ["ch"])


async def test_a_channel_that_is_far_behind_leaves_room_for_the_others(
    make_world: MakeWorld,
) -> None:
    # Ten channels of three pieces each: no channel gets its third piece before every
    # channel has had its first.
    world = await make_world(settings({"recovery_size": 100}))
    channels = [f"ch{number}" for number in range(10)]
    for channel in channels:
        await world.publish(channel, size=60, count=4)
    connection, socket = await world.connect()
    connection.receive(
        lines(
            *(
                {"id": number, "subscribe": {"channel": channel, "recover": True}}
                for number, channel in enumerate(channels, 2)
            )
        )
    )
    await socket.until(lambda: all(socket.offsets(c)[-1:] == [4] for c in channels))
    order = [
        (m["push"]["channel"], m["push"]["pub"]["offset"])
        for m in socket.messages
        if "push" in m
    ]
    last_first = max(order.index((c, 2)) for c in channels)
    first_third = min(order.index((c, 4)) for c in channels)
    assert last_first < first_third


async def test_histories_asked_for_at_once_do_not_close_a_client_that_reads(
    world: LoopWorld,
) -> None:
    await world.publish("ch", size=10 * KiB, count=30)
    connection, socket = await world.connect()
    connection.receive(
        lines(
            *(
                {"id": number, "history": {"channel": "ch", "limit": -1}}
                for number in range(2, 12)
            )
        )
    )
    await connection.ready()
    await socket.until(
        lambda: socket.closes or any(m.get("id") == 11 for m in socket.messages)
    )
    assert socket.closes == []


async def test_a_history_reply_is_cut_at_a_piece(world: LoopWorld) -> None:
    await world.publish("ch", size=60 * KiB, count=10)
    connection, socket = await world.connect()
    ask = {"channel": "ch", "limit": -1}
    connection.receive(lines({"id": 2, "history": ask}))
    result = (await socket.reply(2))["history"]
    assert [p["offset"] for p in result["publications"]] == [1, 2, 3, 4]
    assert result["offset"] == 10
    ask["since"] = {"offset": 4, "epoch": result["epoch"]}
    connection.receive(lines({"id": 3, "history": ask}))
    result = (await socket.reply(3))["history"]
    assert [p["offset"] for p in result["publications"]] == [5, 6, 7, 8]


@pytest.mark.requirement("R24", "L21")
async def test_a_client_that_stops_reading_is_closed_and_the_others_are_not(
    world: LoopWorld, clock: VirtualClock
) -> None:
    _, slow = await world.connect("ch")
    _, good = await world.connect("ch")
    slow.stop_reading()
    for _ in range(30):
        await world.publish("ch", size=60 * KiB)
    assert good.offsets("ch") == list(range(1, 31))
    assert world.subscriptions == 1  # nothing more is handed to the slow one
    before = len(slow.frames)
    slow.read_on()
    await slow.until(lambda: slow.closes)
    assert slow.closes == [3008]
    assert len(slow.frames) == before + 1  # what was under way, nothing of the queue
    assert slow.offsets("ch") == [1]
    assert good.closes == []
    assert clock.pending


@pytest.mark.requirement("R13")
async def test_a_write_that_takes_too_long_is_final(
    world: LoopWorld, clock: VirtualClock
) -> None:
    _, socket = await world.connect("ch")
    socket.stop_reading()
    await world.publish("ch")
    await world.publish("ch")
    clock.advance(1.99)
    assert world.subscriptions == 1
    clock.advance(0.01)
    assert world.subscriptions == 0
    socket.read_on()
    await socket.until(lambda: socket.closes)
    assert socket.closes == [3009]
    assert socket.offsets("ch") == [1]


async def test_a_client_that_never_reads_again_is_aborted(
    world: LoopWorld, clock: VirtualClock
) -> None:
    _, socket = await world.connect("ch")
    socket.stop_reading()
    await world.publish("ch")
    await world.quiet()
    clock.advance(2.0)
    clock.advance(29.99)
    assert socket.aborts == 0
    clock.advance(0.01)
    assert socket.aborts == 1
    assert socket.closes == []


async def test_a_peer_that_does_not_take_the_close_frame_is_aborted(
    world: LoopWorld, clock: VirtualClock
) -> None:
    connection, socket = await world.connect()
    connection.malformed()
    await socket.until(lambda: socket.closes)
    clock.advance(29.99)
    assert socket.aborts == 0
    clock.advance(0.01)
    assert socket.aborts == 1


@pytest.mark.requirement("B55")
async def test_a_socket_that_is_gone_while_the_close_frame_is_written(
    world: LoopWorld,
) -> None:
    connection, socket = await world.connect()
    socket.gone = True
    connection.malformed()
    await socket.until(lambda: socket.aborts)
    assert socket.closes == []


@pytest.mark.requirement("B38")
async def test_a_socket_that_is_gone_while_a_push_is_written(world: LoopWorld) -> None:
    _, socket = await world.connect("ch")
    socket.gone = True
    await world.publish("ch")
    await socket.until(lambda: socket.aborts)
    assert world.subscriptions == 0

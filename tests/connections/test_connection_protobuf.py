"""Connections that speak protobuf, beside others that speak JSON."""

from __future__ import annotations

import pytest

from service.core.errors import ErrorReply, ReplyError
from service.core.hooks import Handlers, RpcEvent, RpcResult
from service.core.model import Channel, Draft, RawJson
from service.protocol.protobuf import Protobuf
from tests.clock import VirtualClock
from tests.connections.conftest import MakeWorld
from tests.protocol.public import Command, commands, frame
from tests.world.loop import LoopWorld, settings

KiB = 1024


async def test_a_publication_is_made_protobuf_once_for_all(world: LoopWorld) -> None:
    codec = Protobuf()
    binary = [await world.connect("ch", codec=codec) for _ in range(50)]
    text = [await world.connect("ch") for _ in range(2)]
    for socket in [socket for _, socket in binary + text]:
        socket.forget()
    for _ in range(3):
        await world.publish("ch")
        await world.quiet()
    (first, *rest) = [socket for _, socket in binary]
    assert len(first.frames) == 3
    for socket in rest:
        # The very objects: nobody worked on them again.
        assert all(a is b for a, b in zip(socket.frames, first.frames, strict=True))
    for _, socket in text:
        assert socket.messages == first.messages
    assert first.offsets("ch") == [1, 2, 3]


async def test_both_kinds_hear_the_same_of_one_channel(world: LoopWorld) -> None:
    codec = Protobuf()
    _, binary = await world.connect("ch", codec=codec)
    connection, text = await world.connect("ch")
    await world.publish("ch", count=5)
    connection.gone()
    _, late = await world.connect("ch", codec=codec)
    await world.publish("ch", count=5)
    await world.quiet()
    assert binary.offsets("ch") == list(range(1, 11))
    assert text.offsets("ch") == list(range(1, 6))
    assert late.offsets("ch") == list(range(6, 11))


async def test_a_ping_is_one_byte_and_so_is_its_pong(
    world: LoopWorld, clock: VirtualClock
) -> None:
    connection, socket = await world.connect(codec=Protobuf())
    socket.forget()
    for _ in range(50):  # the first comes after 12.5 to 25 s
        clock.advance(0.5)
        await world.quiet()
        if socket.frames:
            break
    assert socket.frames == [b"\0"]
    connection.receive(b"\0")
    clock.advance(8.5)
    await world.quiet()
    assert socket.closes == []
    connection.receive(b"\0")  # the answer to nothing
    await world.quiet()
    assert socket.closes == [3501]


async def test_a_queue_is_bounded_in_bytes_as_they_are_sent(
    make_world: MakeWorld,
) -> None:
    world = await make_world(settings({"queue_size": 10 * KiB}))
    _, socket = await world.connect("ch", codec=Protobuf())
    _, other = await world.connect("ch", codec=Protobuf())
    _, text = await world.connect("ch")
    socket.stop_reading()
    await world.publish("ch", size=100)  # under way, and counts no more
    await world.quiet()
    fit = 10 * KiB // len(other.frames[-1])
    assert fit * len(text.frames[-1]) > 10 * KiB  # as many in JSON are too much
    await world.publish("ch", size=100, count=fit - 1)
    await world.quiet()
    assert len(world.registry) == 3
    await world.publish("ch", size=100, count=2)
    socket.read_on()
    await world.quiet()
    assert socket.closes == [3008]
    assert other.closes == []
    assert other.offsets("ch") == list(range(1, fit + 3))


async def test_frames_hold_64_kib_of_whole_messages(world: LoopWorld) -> None:
    _, socket = await world.connect("ch", codec=Protobuf())
    socket.stop_reading()
    await world.publish("ch")
    await world.quiet()
    await world.publish("ch", size=1000, count=500)
    await world.quiet()
    socket.read_on()
    await socket.until(lambda: socket.offsets("ch")[-1:] == [501])
    assert socket.offsets("ch") == list(range(1, 502))
    sizes = [len(written) for written in socket.frames[3:]]
    assert max(sizes) <= 64 * KiB
    assert all(size > 64 * KiB - 1100 for size in sizes[:-1])  # and as many as fit


async def test_recovery_comes_in_pieces(world: LoopWorld) -> None:
    await world.publish("ch", size=10 * KiB, count=300)
    connection, socket = world.open(Protobuf())
    subscribe = {"channel": "ch", "recover": True, "offset": 1}
    connection.receive(
        commands({"id": 1, "connect": {}}, {"id": 2, "subscribe": subscribe})
    )
    reply = (await socket.reply(2))["subscribe"]
    assert reply["recovered"] is True
    assert len(reply["publications"]) == 1  # of a window of 16 KiB
    await world.caught_up(socket, lambda: socket.offsets("ch")[-1:] == [300])
    assert socket.offsets("ch") == list(range(2, 301))
    assert socket.closes == []


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b'{"id":3,"rpc":{}}', b"\x05\x08", frame(b"\x3a\x03\x0a\x01\xff")],
    ids=["empty", "half a length", "JSON", "too short", "not UTF-8"],
)
async def test_a_malformed_frame_closes(world: LoopWorld, data: bytes) -> None:
    for connection, socket in (
        world.open(Protobuf()),
        await world.connect(codec=Protobuf()),
    ):
        connection.receive(data)
        await world.quiet()
        assert socket.closes == [3501]


async def test_a_payload_that_is_not_json_is_refused_and_nothing_else(
    world: LoopWorld,
) -> None:
    connection, socket = await world.connect("ch", codec=Protobuf())
    bad = {"channel": "ch", "data": b"\xff\x00"}
    good = {"channel": "ch", "data": b'{"ch":"ch"}'}
    connection.receive(
        frame(
            Command(id=10, publish=bad),
            Command(id=11, publish=good),
            Command(id=12, rpc={"method": "m", "data": b"\x00"}),
            Command(id=13, subscribe={"channel": "other", "data": b"\x00"}),
            Command(id=14, subscribe={"channel": "other"}),
        )
    )
    for number in (10, 12, 13):
        error = (await socket.reply(number))["error"]
        assert error == {"code": 107, "message": "bad request"}
    assert await socket.reply(11) == {"id": 11, "publish": {}}
    assert "error" not in await socket.reply(14)
    assert socket.offsets("ch") == [1]
    assert socket.closes == []


async def test_a_send_is_not_available(world: LoopWorld) -> None:
    for data in (b"{}", b"\xff"):
        connection, socket = await world.connect(codec=Protobuf())
        connection.receive(frame(Command(send={"data": data})))
        await world.quiet()
        assert socket.closes == [3508]


async def test_a_publish_without_a_payload_closes(world: LoopWorld) -> None:
    # Of no bytes, which protobuf does not tell from none.
    connection, socket = await world.connect(codec=Protobuf())
    connection.receive(frame(Command(id=2, publish={"channel": "ch", "data": b""})))
    await world.quiet()
    assert socket.closes == [3501]


async def test_an_answer_that_protobuf_cannot_say_ends_that_connection_alone(
    clock: VirtualClock,
) -> None:
    async def rpc(event: RpcEvent) -> RpcResult:
        raise ReplyError(ErrorReply(-5, "below zero"))

    world = LoopWorld(settings(), clock, Handlers(rpc=rpc))
    await world.start()
    try:
        connection, socket = await world.connect("ch", codec=Protobuf())
        _, other = await world.connect("ch", codec=Protobuf())
        connection.receive(commands({"id": 5, "rpc": {"method": "m"}}))
        await socket.until(lambda: socket.closes)
        assert socket.closes == [3506]
        await world.publish("ch")
        await world.quiet()
        assert other.offsets("ch") == [1]
        assert other.closes == []
    finally:
        await world.stop()


async def test_half_a_surrogate_pair_harms_no_subscriber(world: LoopWorld) -> None:
    # JSON clients may publish it: it is valid JSON.
    _, binary = await world.connect("ch", codec=Protobuf())
    connection, text = await world.connect("ch")
    connection.receive(
        '{"id":9,"publish":{"channel":"ch","data":{"ch":"ch","x":"\\ud800"}}}'
    )
    assert await text.reply(9) == {"id": 9, "publish": {}}
    await world.publish("ch")
    await world.quiet()
    assert text.offsets("ch") == binary.offsets("ch") == [1, 2]
    (push, _) = [m["push"] for m in binary.messages if "push" in m]
    assert push["pub"]["data"] == {"ch": "ch", "x": "\ufffd"}
    assert binary.closes == []


async def test_publish_keeps_the_text_of_a_payload(world: LoopWorld) -> None:
    connection, binary = await world.connect("ch", codec=Protobuf())
    _, text = await world.connect("ch")
    data = '{"ch": "ch",  "n": 1.50, "e": 1E2}'
    publish = {"channel": "ch", "data": f" {data}\n".encode()}
    connection.receive(frame(Command(id=9, publish=publish)))
    await text.until(lambda: text.offsets("ch") == [1])
    await binary.until(lambda: binary.offsets("ch") == [1])
    # The reply to the publish may have a frame of its own, before or after.
    assert "".join(map(str, text.frames)).count(f'"data":{data},') == 1
    assert b"".join(map(bytes, binary.frames)).count(data.encode()) == 1
    # And of what comes over HTTP.
    rules = world.context.permissions.rules("ch")
    world.hub.publish(
        Channel("ch"), Draft(RawJson(data)), rules.history, lambda outcome: None
    )
    await binary.until(lambda: len(binary.offsets("ch")) == 2)
    assert b"".join(map(bytes, binary.frames)).count(data.encode()) == 2

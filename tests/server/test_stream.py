"""One WebSocket: echo, and the close code for each breach of RFC 6455 or a limit."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from typing import Any

import pytest

from tests.harness.raw import CLOSE, CONTINUATION, PING, PONG, TEXT, Closed, RawClient
from tests.server.running import PATHS, close_frame, process_with

LIMIT = 65536
server = process_with({}, paths=tuple(PATHS))


async def assert_ended(client: RawClient) -> None:
    with pytest.raises(Closed):
        await client.frame()


@pytest.mark.parametrize("text", ["", "a", "ü" * 62, "😀" * 16000, "x" * LIMIT])
async def test_echo(server: Any, text: str) -> None:
    async with await server.open(server.echo) as client:
        await client.send_text(text)
        frame = await client.frame()
        assert frame == (True, 0, TEXT, text.encode())


async def test_binary_echo(server: Any) -> None:
    async with await server.open(server.echo) as client:
        await client.send_frame(0x2, b"\x00\xff")
        assert await client.frame() == (True, 0, 0x2, b"\x00\xff")


async def test_fragments_with_a_ping_between_are_one_message(server: Any) -> None:
    async with await server.open(server.echo) as client:
        await client.send_frame(TEXT, "ä".encode()[:1], fin=False)
        await client.send_frame(PING, b"p")
        await client.send_frame(CONTINUATION, "ä".encode()[1:], fin=False)
        await client.send_frame(CONTINUATION, b"")
        assert await client.frame() == (True, 0, PONG, b"p")
        assert await client.frame() == (True, 0, TEXT, "ä".encode())


async def test_a_frame_byte_by_byte(server: Any) -> None:
    async with await server.open(server.echo) as client:
        masked = bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi"
        for byte in masked:
            await client.tcp.send(bytes([byte]))
        assert (await client.frame()).payload == b"hi"


async def test_offered_deflate_is_declined(server: Any) -> None:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    async with await server.open(server.echo, headers=offer) as client:
        assert "sec-websocket-extensions" not in client.headers
        await client.send_text("a" * 1000)
        assert await client.frame() == (True, 0, TEXT, b"a" * 1000)


@pytest.mark.parametrize("wsproto", [False, True], ids=["frames", "wsproto"])
async def test_deflate_when_it_is_set(launch: Any, wsproto: bool) -> None:
    process = launch(deflate=True, wsproto=wsproto)
    await process.ready()
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
    async with await process.open("/echo", headers=offer) as client:
        accepted = client.headers["sec-websocket-extensions"]
        assert accepted.startswith("permessage-deflate")
        takeover = "client_no_context_takeover" not in accepted
        assert takeover is ("server_no_context_takeover" not in accepted) is wsproto
        deflated = zlib.compressobj(wbits=-15)
        data = deflated.compress(b"a" * LIMIT) + deflated.flush(zlib.Z_SYNC_FLUSH)
        await client.send_frame(TEXT, data[:-4], rsv=4)
        frame = await client.frame()
        assert frame.rsv == 4
        inflated = zlib.decompressobj(-15).decompress(frame.payload + data[-4:])
        assert inflated == b"a" * LIMIT
        # Not everything has to be compressed.
        await client.send_text("plain")
        assert (await client.frame()).fin
        await client.send_text("x" * (LIMIT + 1))
        assert await close_frame(client) == (1009, "message too big")
    await process.freed()


@pytest.mark.parametrize("wsproto", [False, True], ids=["frames", "wsproto"])
async def test_control_frames_between_the_fragments_of_a_deflated_message(
    launch: Any, wsproto: bool
) -> None:
    process = launch(deflate=True, wsproto=wsproto)
    await process.ready()
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    async with await process.open("/echo", headers=offer) as client:
        deflated = zlib.compressobj(wbits=-15)
        inflated = zlib.decompressobj(wbits=-15)
        for word in (b"one ", b"two "):
            if not wsproto:  # each message alone
                deflated = zlib.compressobj(wbits=-15)
                inflated = zlib.decompressobj(wbits=-15)
            data = deflated.compress(word * 500) + deflated.flush(zlib.Z_SYNC_FLUSH)
            data = data[:-4]
            pieces = [data[:3], data[3:7], data[7:]]
            await client.send_frame(PING, b"0")
            await client.send_frame(TEXT, pieces[0], rsv=4, fin=False)
            await client.send_frame(PING, b"1")
            await client.send_frame(CONTINUATION, pieces[1], fin=False)
            await client.send_frame(PONG, b"2")
            await client.send_frame(CONTINUATION, pieces[2])
            assert await client.frame() == (True, 0, PONG, b"0")
            assert await client.frame() == (True, 0, PONG, b"1")
            frame = await client.frame()
            assert (frame.opcode, frame.rsv) == (TEXT, 4)
            assert inflated.decompress(frame.payload + bytes(2) + b"\xff\xff") == (
                word * 500
            )
        # In a message that is not deflated, too; and none may claim to be.
        await client.send_frame(TEXT, b"pl", fin=False)
        await client.send_frame(PING, b"3")
        await client.send_frame(CONTINUATION, b"ain")
        assert await client.frame() == (True, 0, PONG, b"3")
        frame = await client.frame()
        if wsproto:
            data = frame.payload + bytes(2) + b"\xff\xff"
            assert inflated.decompress(data) == b"plain"
        else:
            assert frame == (True, 0, TEXT, b"plain")  # it is too short
        await client.send_frame(PING, b"4", rsv=4)
        assert await close_frame(client) == (1002, "protocol error")


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate; client_max_window_bits=many",
        "permessage-deflate; server_max_window_bits=8",
    ],
)
async def test_a_deflate_offer_that_makes_no_sense(launch: Any, offer: str) -> None:
    process = launch(deflate=True)
    await process.ready()
    headers = {"Sec-WebSocket-Extensions": offer}
    async with await process.open("/echo", headers=headers) as client:
        assert "sec-websocket-extensions" not in client.headers
        await client.send_text("a")
        assert (await client.frame()).payload == b"a"


WRONG: dict[str, tuple[dict[str, Any], int]] = {
    "not masked": ({"opcode": TEXT, "payload": b"a", "masked": False}, 1002),
    "reserved opcode": ({"opcode": 0x3, "payload": b"a"}, 1002),
    "reserved bit": ({"opcode": TEXT, "payload": b"a", "rsv": 4}, 1002),
    "control in pieces": ({"opcode": PING, "payload": b"a", "fin": False}, 1002),
    "control too long": ({"opcode": PING, "payload": b"a" * 126}, 1002),
    "continues nothing": ({"opcode": CONTINUATION, "payload": b"a"}, 1002),
    "close of one byte": ({"opcode": CLOSE, "payload": b"a"}, 1002),
    "close with 1005": ({"opcode": CLOSE, "payload": b"\x03\xed"}, 1002),
    "not UTF-8": ({"opcode": TEXT, "payload": b"ok\xff"}, 1007),
    "cut UTF-8": ({"opcode": TEXT, "payload": "ä".encode()[:1]}, 1007),
    "reason not UTF-8": ({"opcode": CLOSE, "payload": b"\x03\xe8\xff"}, 1007),
    "too long": ({"opcode": TEXT, "payload": b"a" * (LIMIT + 1)}, 1009),
    "too long in bytes": ({"opcode": TEXT, "payload": "ä".encode() * 32769}, 1009),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_frame(server: Any, case: str) -> None:
    frame, code = WRONG[case]
    reasons = {
        1002: "protocol error",
        1007: "invalid payload data",
        1009: "message too big",
    }
    async with await server.open(server.echo) as client:
        await client.send_text("before")
        assert (await client.frame()).payload == b"before"
        await client.send_frame(**frame)
        assert await close_frame(client) == (code, reasons[code])
        await assert_ended(client)
    await server.freed()
    assert (await server.state())["codes"][-1] == code


async def test_a_wrong_peer_that_does_nothing_more(server: Any) -> None:
    """It does not answer and does not close; its descriptor is freed all the same."""
    clients = [await server.open(server.echo) for _ in WRONG]
    for client, (frame, _) in zip(clients, WRONG.values(), strict=True):
        await client.send_frame(**frame)
    await server.freed()
    for client, (_, code) in zip(clients, WRONG.values(), strict=True):
        assert (await close_frame(client))[0] == code
        client.tcp.close()


async def test_a_declared_length_is_enough(server: Any) -> None:
    async with await server.open(server.echo) as client:
        await client.tcp.send(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4))
        assert await close_frame(client) == (1009, "message too big")
    await server.freed()


async def test_fragments_add_up(server: Any) -> None:
    async with await server.open(server.echo) as client:
        await client.send_frame(TEXT, b"a" * LIMIT, fin=False)
        await client.send_frame(PING, b"still here")
        assert await client.frame() == (True, 0, PONG, b"still here")
        await client.send_frame(CONTINUATION, b"a", fin=False)
        assert await close_frame(client) == (1009, "message too big")
    await server.freed()


async def test_a_fragment_whose_header_comes_in_two_reads_counts_once(
    server: Any,
) -> None:
    async with await server.open(server.echo) as client:
        await client.send_frame(TEXT, b"a" * 40_000, fin=False)
        header = bytes([0x80, 0xFE]) + (20_000).to_bytes(2, "big")
        ping = bytes([0x89, 0x80, 0, 0, 0, 0])
        await client.tcp.send(ping + header + bytes(3))  # one byte short of the mask
        assert await client.frame() == (True, 0, PONG, b"")
        await client.tcp.send(bytes(1) + b"b" * 20_000)
        frame = await client.frame()
        assert frame == (True, 0, TEXT, b"a" * 40_000 + b"b" * 20_000)


async def test_empty_fragments_cost_nothing(server: Any) -> None:
    async with await server.open(server.echo) as client:
        await client.send_frame(TEXT, b"", fin=False)
        empty = bytes([0x00, 0x80, 0, 0, 0, 0])
        await client.tcp.send(empty * 20_000)
        await client.send_frame(PING, b"")
        await client.frame()
        before = server.memory()
        await client.tcp.send(empty * 200_000)
        await client.send_frame(PING, b"")
        await client.frame(within=60)
        assert server.memory() - before < 5 << 20


async def test_an_oversize_sender_that_does_not_stop(server: Any) -> None:
    """It keeps sending and never reads; the descriptor goes, the memory stays."""
    async with await server.open(server.echo) as client:
        before = server.memory()
        await client.tcp.send(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + bytes(4))

        async def send_on() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await client.tcp.send(bytes(1 << 16))

        sending = asyncio.create_task(send_on())
        try:
            await server.freed()
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending
        assert server.memory() - before < 5 << 20


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_the_application_learns_the_peer_s_code(server: Any, code: int) -> None:
    async with await server.open(server.echo) as client:
        await client.send_frame(CLOSE, code.to_bytes(2, "big") + b"bye")
        assert await close_frame(client) == (code, "bye")
    await server.freed()
    assert (await server.state())["codes"][-1] == code


async def test_a_close_without_code(server: Any) -> None:
    async with await server.open(server.echo) as client:
        await client.send_frame(CLOSE, b"")
        assert await client.frame() == (True, 0, CLOSE, b"")
    await server.freed()
    assert (await server.state())["codes"][-1] == 1005


async def test_a_lost_connection(server: Any) -> None:
    client = await server.open(server.echo)
    client.reset()
    await server.freed()
    assert (await server.state())["codes"][-1] == 1006

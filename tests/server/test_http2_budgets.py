"""HTTP/2: what one connection may send that is not a request, and what is kept of it.

Frames are written by hand: a client's library would not send them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from service.server.http2 import PART, RATE, STREAMS
from tests.harness.server import Server
from tests.harness.sockets import TcpClient
from tests.server.running import process_with

DATA, HEADERS, PRIORITY, RESET, SETTINGS, PING, GOAWAY, WINDOW = *range(5), 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PROTOCOL_ERROR, ENHANCE_YOUR_CALM = 1, 11


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = struct.pack("!I", len(payload))[1:]
    return size + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def request(stream: int, flags: int = END_STREAM, /, **fields: bytes) -> bytes:
    found = {"method": b"GET", "scheme": b"http", "path": b"/", "authority": b"x"}
    pairs = (found | fields).items()
    block = b"".join(literal(b":" + name.encode(), value) for name, value in pairs)
    return frame(HEADERS, END_HEADERS | flags, stream, block)


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BEGIN = PREFACE + frame(SETTINGS, 0, 0)
FLOOD = range(1, 4001, 2)  # streams
FLOODS = {
    "pings": frame(PING, 0, 0, bytes(8)) * 2000,
    "pongs": frame(PING, ACK, 0, bytes(8)) * 2000,
    "settings": frame(SETTINGS, 0, 0) * 2000,
    "unknown": frame(0x55, 0, 0) * 2000,
    "windows": frame(WINDOW, 0, 0, struct.pack("!I", 1)) * 4000,
    "priorities": b"".join(
        frame(PRIORITY, 0, stream, struct.pack("!IB", 0, 7)) for stream in FLOOD
    ),
    "one priority": frame(PRIORITY, 0, 1, struct.pack("!IB", 0, 7)) * 2000,
    "resets": b"".join(
        request(stream) + frame(RESET, 0, stream, bytes(4)) for stream in FLOOD
    ),
    "empty data": request(1, 0, method=b"POST") + frame(DATA, 0, 1) * 2000,
}


server = process_with({"cleartext_http2": True})


async def read(tcp: TcpClient) -> tuple[int, int, int, bytes]:
    """Return a frame's kind, flags, stream and payload."""
    async with asyncio.timeout(20.0):
        head = await tcp.read_exactly(9)
        size = int.from_bytes(head[:3], "big")
        payload = await tcp.read_exactly(size)
    return head[3], head[4], int.from_bytes(head[5:], "big"), payload


async def send_all(tcp: TcpClient, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        await tcp.send(data)


@pytest.mark.requirement("R35")
@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_of_frames_ends_its_connection(server: Any, flood: str) -> None:
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        await tcp.send(BEGIN)
        sending = asyncio.ensure_future(send_all(tcp, FLOODS[flood]))
        kind = 0
        while kind != GOAWAY:
            kind, _, _, payload = await read(tcp)
        await sending
    assert int.from_bytes(payload[4:8], "big") == ENHANCE_YOUR_CALM
    await server.freed()


async def test_pings_within_the_budget_are_answered(server: Any) -> None:
    pings = int(RATE.burst) - 2  # and the settings, and their acknowledgement
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        await tcp.send(BEGIN + frame(SETTINGS, ACK, 0))
        await tcp.send(frame(PING, 0, 0, b"01234567") * pings + request(1))
        answered, kind = 0, SETTINGS
        while kind != HEADERS:
            kind, flags, _, payload = await read(tcp)
            answered += (kind, flags, payload) == (PING, ACK, b"01234567")
    assert answered == pings
    await server.freed()


@pytest.mark.parametrize(
    "fields",
    [
        {"path": b"/\xff"},
        {"method": b"G\xff"},
        {"method": b"CONNECT", "protocol": b"other"},
    ],
)
async def test_a_request_that_cannot_be_read_is_reset(
    server: Any, fields: dict[str, bytes]
) -> None:
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        await tcp.send(BEGIN + request(1, **fields) + request(3))
        reset, kind, stream = 0, SETTINGS, 0
        while (kind, stream) != (HEADERS, 3):  # the others go on
            kind, _, stream, payload = await read(tcp)
            if kind == RESET:
                assert stream == 1
                reset = int.from_bytes(payload, "big")
    assert reset == PROTOCOL_ERROR
    await server.freed()
    assert not any("connection failed" in line for line in server.errors)


async def test_the_requests_at_once_are_limited(server: Any) -> None:
    posts = [request(2 * n + 1, 0, method=b"POST") for n in range(STREAMS + 1)]
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        kind = 0
        await tcp.send(BEGIN)
        kind, _, _, payload = await read(tcp)
        assert kind == SETTINGS and struct.pack("!HI", 3, STREAMS) in payload
        await tcp.send(b"".join(posts))
        while kind != GOAWAY:
            kind, _, _, _ = await read(tcp)


async def test_what_is_not_read_is_not_kept(tmp_path: Path) -> None:
    """Answers wait in parts; when the peer opens its window, they are whole."""
    server = Server(tmp_path, {"STEADWIRE_SERVER_CLEARTEXT_HTTP2": "true"})
    await server.start()
    shut = PREFACE + frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 0))
    asked = b"".join(
        request(2 * n + 1, path=b"/api/openapi.json") for n in range(STREAMS)
    )
    try:
        memory = server.process.memory_info().rss
        many = [await TcpClient.connect(server.port) for _ in range(40)]
        for tcp in many:
            await tcp.send(shut + asked)
        heads = 0
        for tcp in many:
            for _ in range(STREAMS):
                while (await read(tcp))[0] != HEADERS:
                    pass
                heads += 1
        size = 0
        grown = server.process.memory_info().rss - memory
        # The answer has 60 KB, and a request without it takes some 25 KB.
        assert grown < heads * (PART + 32 * 1024), grown
        opened = struct.pack("!I", 1 << 24)
        await many[0].send(frame(WINDOW, 0, 0, opened) + frame(WINDOW, 0, 1, opened))
        body, ended = b"", 0
        while not ended:
            kind, flags, stream, payload = await read(many[0])
            if kind == DATA and stream == 1:
                body += payload
                ended = flags & END_STREAM
        size = len(body)
        assert size > 2 * PART and json.loads(body)["openapi"] == "3.1.0"
        for tcp in many:
            tcp.close()
    finally:
        server.close()

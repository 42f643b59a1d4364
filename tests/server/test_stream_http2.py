"""A WebSocket over HTTP/2 (RFC 8441), which shares its socket with others."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from tests.harness.http2 import Stream
from tests.harness.sockets import TcpClient
from tests.server.running import process_with, until

MASKED = bytes(4)
TOO_BIG = b"\x88\x11\x03\xf1message too big"


server = process_with({"cleartext_http2": True})


@pytest.mark.parametrize(
    ("frame", "answer", "code"),
    [
        (b"\x83\x80" + MASKED, b"\x88\x10\x03\xeaprotocol error", 1002),
        (b"\x88\x82" + MASKED + b"\x0b\xb8", b"\x88\x02\x0b\xb8", 3000),
        (
            b"\x81\xff" + bytes(3) + b"\1" + MASKED * 2,
            b"\x88\x11\x03\xf1message too big",
            1009,
        ),
    ],
    ids=["broken", "closed", "oversize"],
)
async def test_websocket(server: Any, frame: bytes, answer: bytes, code: int) -> None:
    stream = Stream(await TcpClient.connect(server.port))
    with contextlib.closing(stream.tcp):
        await stream.open(server.port, "/echo")
        assert stream.status == b"200"
        await stream.send(b"\x81\x82" + MASKED + b"hi")
        while stream.data != b"\x81\x02hi":
            await stream.read()
        await stream.send(frame)
        while not stream.ended:
            await stream.read()
        assert stream.data == b"\x81\x02hi" + answer
        assert (await server.state())["codes"][-1] == code
        # Only the stream has ended; the connection could carry others.
        await until(lambda: server.sockets() == 1, 2.0, "only ours is left")
    await server.freed()


async def test_the_application_closes(server: Any) -> None:
    stream = Stream(await TcpClient.connect(server.port))
    with contextlib.closing(stream.tcp):
        await stream.open(server.port, "/close")
        await stream.send(b"\x81\x80" + MASKED)
        while not stream.ended:
            await stream.read()
        assert stream.data == b"\x88\x0d\x0d\xadbad request"
    await server.freed()

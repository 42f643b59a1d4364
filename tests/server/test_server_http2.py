"""A WebSocket over HTTP/2 (RFC 8441), which shares its socket with others."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from service.core.errors import StartupError
from service.core.refusals import Refusals
from service.server import HYPERCORN_VERSIONS, install
from service.server import connection as seam
from service.settings import ServerSettings
from tests.harness.sockets import TcpClient
from tests.server.running import until

MASKED = bytes(4)
TOO_BIG = b"\x88\x11\x03\xf1message too big"


class Stream:
    """One extended CONNECT on a connection of its own."""

    def __init__(self, tcp: TcpClient) -> None:
        self.tcp = tcp
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration())
        self.status = b""
        self.data = b""
        self.ended = False

    async def open(self, port: int, path: str) -> None:
        self.h2.initiate_connection()
        await self.flush()
        code = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
        while not self.h2.remote_settings.get(code):
            await self.read()
        fields = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "http",
            ":path": path,
            ":authority": f"127.0.0.1:{port}",
            "sec-websocket-version": "13",
        }
        self.h2.send_headers(1, list(fields.items()))
        await self.flush()
        while not self.status:
            await self.read()

    async def flush(self) -> None:
        await self.tcp.send(self.h2.data_to_send())

    async def send(self, frame: bytes) -> None:
        self.h2.send_data(1, frame)
        await self.flush()

    async def read(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.tcp.sock, 65536)
        assert data, "the connection has ended"
        for event in self.h2.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                self.status = dict(event.headers)[b":status"]
            elif isinstance(event, h2.events.DataReceived):
                self.data += event.data
            elif isinstance(event, h2.events.StreamEnded):
                self.ended = True
        await self.flush()


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
    await server.freed(2.0)


async def test_the_application_closes(server: Any) -> None:
    stream = Stream(await TcpClient.connect(server.port))
    with contextlib.closing(stream.tcp):
        await stream.open(server.port, "/close")
        await stream.send(b"\x81\x80" + MASKED)
        while not stream.ended:
            await stream.read()
        assert stream.data == b"\x88\x0d\x0d\xadbad request"
    await server.freed(2.0)


def test_supported_versions_of_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"0.18.0"} == HYPERCORN_VERSIONS
    monkeypatch.setattr(seam, "version", lambda name: "0.18.1")
    with pytest.raises(StartupError, match=r"hypercorn 0\.18\.1 is not supported"):
        install(ServerSettings(), Refusals())

"""A WebSocket over HTTP/2 (RFC 8441), by the library h2."""

from __future__ import annotations

import asyncio

import h2.config
import h2.connection
import h2.events
import h2.settings

from tests.harness.sockets import TcpClient

__all__ = ["Stream"]


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

"""A WebSocket client that sends exactly the bytes a test gives it (RFC 6455)."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from tests.harness.sockets import TcpClient

__all__ = [
    "BINARY",
    "CLOSE",
    "CONTINUATION",
    "PING",
    "PONG",
    "TEXT",
    "Closed",
    "Frame",
    "HandshakeRefused",
    "RawClient",
]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

PATH = "/connection/websocket"


class Frame(NamedTuple):
    """A frame from the server, as it came."""

    fin: bool
    rsv: int
    opcode: int
    payload: bytes


class Closed(Exception):
    """The connection is over.

    Attributes:
        code: From the close frame; None when TCP ended without one.
        reason: From the close frame, else how TCP ended.
    """

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"closed {code} {reason!r}")
        self.code = code
        self.reason = reason


class HandshakeRefused(Exception):
    """The server answered the upgrade with a status other than 101.

    Attributes:
        status: The HTTP status.
        head: The response head as text.
    """

    def __init__(self, status: int, head: str) -> None:
        super().__init__(f"handshake refused with {status}")
        self.status = status
        self.head = head


class RawClient:
    """One WebSocket connection; it reads only inside a call that asks for something.

    Attributes:
        tcp: The connection below.
        headers: Of the handshake response, names in lower case.
        pushes: Messages that came while a reply was awaited, in order.
        at_gateway: The socket ends at a gateway. It splits messages over several
            frames, and a close is a push before the close frame; `Closed` then has what
            the push said.
    """

    def __init__(self, tcp: TcpClient, headers: dict[str, str]) -> None:
        self.tcp = tcp
        self.headers = headers
        self.pushes: deque[dict[str, Any]] = deque()
        self.at_gateway = False
        self._told: Closed | None = None
        self._lines: deque[str] = deque()
        self._ids = itertools.count(1)

    # --- opening and closing

    @classmethod
    async def open(
        cls,
        port: int,
        *,
        path: str = PATH,
        headers: Mapping[str, str] | None = None,
        receive_buffer: int | None = None,
        source: str = "",
        within: float = 30.0,
    ) -> Self:
        """Do the handshake. No subprotocol, no extension unless *headers* offer one.

        *source* is the address to come from, "" for any.

        Raises:
            HandshakeRefused: The answer was not 101.
        """
        tcp = await TcpClient.connect(
            port, receive_buffer=receive_buffer, source=source
        )
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            fields = {
                "Host": f"127.0.0.1:{port}",
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Key": key,
                "Sec-WebSocket-Version": "13",
                **(headers or {}),
            }
            lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            async with asyncio.timeout(within):
                await tcp.send(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
                head = (await tcp.read_until(b"\r\n\r\n")).decode()
            status = int(head.split(" ", 2)[1])
            if status != 101:
                raise HandshakeRefused(status, head)
            pairs = (line.partition(":") for line in head.splitlines()[1:-1])
            return cls(tcp, {n.strip().lower(): v.strip() for n, _, v in pairs})
        except BaseException:
            tcp.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.tcp.close()

    def reset(self) -> None:
        """Cut the connection without a word."""
        self.tcp.reset()

    # --- writing

    async def send_frame(
        self,
        opcode: int,
        payload: bytes,
        *,
        fin: bool = True,
        rsv: int = 0,
        masked: bool = True,
    ) -> None:
        """Write one frame, right or wrong."""
        head = bytearray([(fin << 7) | (rsv << 4) | opcode])
        mask_bit = 0x80 if masked else 0
        if len(payload) < 126:
            head.append(mask_bit | len(payload))
        elif len(payload) < 1 << 16:
            head.append(mask_bit | 126)
            head += len(payload).to_bytes(2, "big")
        else:
            head.append(mask_bit | 127)
            head += len(payload).to_bytes(8, "big")
        if masked:
            mask = os.urandom(4)
            head += mask
            payload = _mask(payload, mask)
        await self.tcp.send(bytes(head) + payload)

    async def send_text(self, text: str) -> None:
        """Write one text frame."""
        await self.send_frame(TEXT, text.encode())

    async def send(self, *commands: dict[str, Any]) -> None:
        """Write commands in one text frame, one a line."""
        await self.send_text("\n".join(json.dumps(command) for command in commands))

    # --- reading

    async def frame(self, within: float = 30.0) -> Frame:
        """Return the next frame of any kind.

        Raises:
            Closed: TCP ended instead (code None).
            TimeoutError: Nothing came in time.
        """
        try:
            async with asyncio.timeout(within):
                first, second = await self.tcp.read_exactly(2)
                size = second & 0x7F
                assert not second & 0x80, "a server must not mask"
                if size == 126:
                    size = int.from_bytes(await self.tcp.read_exactly(2), "big")
                elif size == 127:
                    size = int.from_bytes(await self.tcp.read_exactly(8), "big")
                payload = await self.tcp.read_exactly(size)
        except EOFError as error:
            raise Closed(None, str(error)) from None
        except (ConnectionError, BrokenPipeError) as error:
            raise Closed(None, str(error)) from None
        return Frame(bool(first & 0x80), (first >> 4) & 7, first & 0xF, payload)

    async def message(self, within: float = 30.0) -> dict[str, Any]:
        """Return the next JSON message; pings of both layers are answered unseen.

        Holds the server to the framing: whole text frames, one object a line, no
        blank line.

        Raises:
            Closed: A close frame came, or TCP ended.
            TimeoutError: Nothing came in time.
        """
        async with asyncio.timeout(within):
            while True:
                while not self._lines:
                    await self._read_lines(within)
                message: dict[str, Any] = json.loads(self._lines.popleft())
                if self.at_gateway and "disconnect" in message.get("push", ()):
                    told = message["push"]["disconnect"]
                    self._told = Closed(told["code"], told["reason"])
                elif message:
                    return message
                elif not self.at_gateway:
                    await self.send_text("{}")

    async def _read_lines(self, within: float) -> None:
        frame = await self.frame(within)
        if frame.opcode == PING:
            await self.send_frame(PONG, frame.payload)
        elif frame.opcode == CLOSE:
            raise self._told or _closed(frame.payload)
        else:
            assert frame.opcode == TEXT, f"JSON in a frame with opcode {frame.opcode}"
            payload = frame.payload
            while self.at_gateway and not frame.fin:
                frame = await self.frame(within)
                assert frame.opcode == CONTINUATION
                payload += frame.payload
            assert frame.fin and not frame.rsv, f"fin {frame.fin}, rsv {frame.rsv}"
            lines = payload.decode().removesuffix("\n").split("\n")
            assert all(lines), f"blank line in {frame.payload[:200]!r}"
            self._lines.extend(lines)

    async def push(self, within: float = 30.0) -> dict[str, Any]:
        """Return the next push's content, kept ones first: ``{"channel", kind}``."""
        message = self.pushes.popleft() if self.pushes else await self.message(within)
        assert "push" in message, f"not a push: {message}"
        push: dict[str, Any] = message["push"]
        return push

    async def publications(
        self, channel: str, count: int, within: float = 30.0
    ) -> list[dict[str, Any]]:
        """Return the next *count* publications, which must all be of *channel*."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(within):
            while len(found) < count:
                push = await self.push(within)
                assert push["channel"] == channel and "pub" in push, push
                found.append(push["pub"])
        return found

    async def closed(self, within: float = 30.0) -> Closed:
        """Return how the connection ended, after reading all that came before."""
        try:
            async with asyncio.timeout(within):
                while True:
                    self.pushes.append(await self.message(within))
        except Closed as closed:
            return closed

    # --- commands

    async def request(self, within: float = 30.0, **command: Any) -> dict[str, Any]:
        """Send one command and return its whole reply; pushes meanwhile are kept."""
        number = next(self._ids)
        await self.send({"id": number, **command})
        async with asyncio.timeout(within):
            while True:
                message = await self.message(within)
                if message.get("id") == number:
                    return message
                self.pushes.append(message)

    async def connect(self, **fields: Any) -> dict[str, Any]:
        """Return the result of a connect command that must succeed."""
        return _result(await self.request(connect=fields), "connect")

    async def subscribe(self, channel: str, **fields: Any) -> dict[str, Any]:
        """Return the result of a subscribe command that must succeed."""
        command = {"channel": channel, **fields}
        return _result(await self.request(subscribe=command), "subscribe")

    async def publish(self, channel: str, data: Any) -> dict[str, Any]:
        """Return the result of a publish command that must succeed."""
        command = {"channel": channel, "data": data}
        return _result(await self.request(publish=command), "publish")


def _result(reply: dict[str, Any], method: str) -> dict[str, Any]:
    assert "error" not in reply, reply
    result: dict[str, Any] = reply[method]
    return result


def _mask(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    stream = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(
        size, "big"
    )


def _closed(payload: bytes) -> Closed:
    if not payload:
        return Closed(1005, "")
    return Closed(int.from_bytes(payload[:2], "big"), payload[2:].decode())

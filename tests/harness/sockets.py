"""A TCP client that reads only when it is told to.

asyncio's streams read ahead by themselves. A client that must be seen to stop reading
cannot be built on them, so this is `loop.sock_recv` and a buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Self

__all__ = ["TcpClient", "close_all"]

_CHUNK = 64 * 1024

_open: set[socket.socket] = set()


def close_all() -> None:
    """Close what a test, most likely a failed one, has left open."""
    while _open:
        _open.pop().close()


class TcpClient:
    """One connection, as a rule an outgoing one on loopback.

    Attributes:
        sock: The non-blocking socket.
        bytes_read: Bytes taken from the kernel so far.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.bytes_read = 0
        self._buffer = bytearray()
        _open.add(sock)

    @classmethod
    async def connect(
        cls,
        port: int,
        *,
        host: str = "127.0.0.1",
        receive_buffer: int | None = None,
        source: str = "",
    ) -> Self:
        """Connect to *port*.

        Args:
            port: Of *host*.
            host: An IPv4 address.
            receive_buffer: SO_RCVBUF in bytes; None for the default.
            source: The address to come from, as 127.0.0.2; "" for any.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if receive_buffer is not None:  # the window is agreed on in the handshake
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source:
                sock.bind((source, 0))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def ended(self) -> bool:
        """Tell whether the peer of an idle connection has closed it meanwhile."""
        try:
            return not self._buffer and not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    async def send(self, data: bytes) -> None:
        """Write all of *data*, and let the other tasks run."""
        await asyncio.get_running_loop().sock_sendall(self.sock, data)
        # sock_* return at once whenever they can. Against a server that is faster
        # than we are, a task that writes and reads would have the loop to itself.
        await asyncio.sleep(0)

    async def read_exactly(self, size: int) -> bytes:
        """Return the next *size* bytes; raises EOFError when the peer has closed."""
        while len(self._buffer) < size:
            await self._fill()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    async def read_until(self, separator: bytes) -> bytes:
        """Return everything up to and with *separator*; raises EOFError."""
        while (found := self._buffer.find(separator)) < 0:
            await self._fill()
        return await self.read_exactly(found + len(separator))

    async def read_answer(self) -> tuple[bytes, bytes]:
        """Return an HTTP/1.1 answer with a length: its head, and its body."""
        head = await self.read_until(b"\r\n\r\n")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, await self.read_exactly(length)

    async def _fill(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.sock, _CHUNK)
        if not data:
            raise EOFError(f"the peer closed, {len(self._buffer)} bytes unread")
        self.bytes_read += len(data)
        self._buffer += data

    def close(self) -> None:
        """Close in order (FIN)."""
        _open.discard(self.sock)
        self.sock.close()

    def reset(self) -> None:
        """Close without order (RST), as when a machine or a cable is gone."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.close()

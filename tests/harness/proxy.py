"""A bad network: a TCP proxy on loopback that can cut, stall, swallow and throttle."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import Self

from tests.harness.sockets import TcpClient

__all__ = ["Proxy"]

# Kernel buffers of the proxy itself, bytes. Small, so that the server feels a slow
# or stalled link and not the proxy's buffers.
_KERNEL_BUFFER = 32 * 1024


class Proxy:
    """Forwards connections to one port of 127.0.0.1.

    Args:
        target: As the attribute.
        seed: Of the sizes in which it forwards.
        buffer: SO_RCVBUF and SO_SNDBUF of its sockets, and the most that it forwards at
            once, in bytes. What is in there counts as delivered for the server.

    Attributes:
        port: Where it listens.
        target: Where it forwards to; may be changed for connections to come.
        accepted: Connections accepted so far.
        held: Connections whose client waits for `release`.
    """

    def __init__(
        self, target: int, *, seed: int = 0, buffer: int = _KERNEL_BUFFER
    ) -> None:
        self.target = target
        self._buffer = buffer
        self.port = 0
        self.accepted = 0
        self.held = 0
        self._released = asyncio.Event()
        self._released.set()
        self._random = random.Random(seed)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._swallow = False
        self._rate: float | None = None
        self._listener = socket.socket()
        self._links: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._listener.setblocking(False)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(1024)
        self.port = self._listener.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._accepting is not None
        self._accepting.cancel()
        tasks = {self._accepting, *self._links}
        self.cut()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    def cut(self) -> None:
        """Reset every connection on both sides; new ones are still accepted."""
        for link in self._links:
            link.cancel()

    def stall(self) -> None:
        """Stop reading both sides: their buffers fill up, then their writes block."""
        self._flowing.clear()

    def resume(self) -> None:
        """End a stall or a black hole; what was swallowed stays lost."""
        self._swallow = False
        self._flowing.set()

    def black_hole(self) -> None:
        """Read everything and pass nothing on in either direction, no end either."""
        self._swallow = True

    def hold(self) -> None:
        """Pass on the first thing that each client sends, and then hold the next."""
        self._released.clear()

    async def release(self) -> None:
        """Pass on what was held; return when the kernel has all of it."""
        self._released.set()
        while self.held:
            await asyncio.sleep(0)

    def throttle(self, bytes_per_second: float | None) -> None:
        """Pass on at most so many bytes per second, in each direction of each link.

        None removes the limit.
        """
        self._rate = bytes_per_second

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            sock.setblocking(False)
            self.accepted += 1
            link = asyncio.create_task(self._link(TcpClient(sock)))
            self._links.add(link)
            link.add_done_callback(self._links.discard)

    async def _link(self, client: TcpClient) -> None:
        try:
            server = await TcpClient.connect(self.target, receive_buffer=self._buffer)
        except OSError:
            client.reset()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(client.sock, server.sock, held=True))
                group.create_task(self._pump(server.sock, client.sock))
        except* OSError:
            pass
        finally:
            client.reset()
            server.reset()

    async def _pump(
        self, source: socket.socket, sink: socket.socket, *, held: bool = False
    ) -> None:
        try:
            if held and not self._released.is_set():
                await self._forward_held(source, sink)
            await self._forward(source, sink)
        except OSError:
            if not self._swallow:
                raise
        if self._swallow:  # the end of a connection is swallowed like its bytes
            await asyncio.get_running_loop().create_future()
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    async def _forward_held(self, source: socket.socket, sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sink, await loop.sock_recv(source, 16 * 1024))
        data = await loop.sock_recv(source, 16 * 1024)
        self.held += 1
        try:
            await self._released.wait()
            await loop.sock_sendall(sink, data)
        finally:
            self.held -= 1

    async def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        most = min(16 * 1024, self._buffer)
        while True:
            await self._flowing.wait()
            # Odd sizes, so that frames are split where nobody expects it.
            data = await loop.sock_recv(source, self._random.randint(1, most))
            if not data:
                return
            await self._flowing.wait()
            if self._swallow:
                continue
            if self._rate is not None:
                due = max(due, loop.time()) + len(data) / self._rate
                await asyncio.sleep(due - loop.time())
            await loop.sock_sendall(sink, data)

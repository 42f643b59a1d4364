"""The proxy: connections to one port, and the faults that a caller asks for.

Bounds: `LINKS` connections, the next is reset; a buffer of so many bytes in each
direction of each of them, beyond which the sender is not read; the kernel's buffers are
as small. Invariant: a connection's end on one side is the end of the other, but for a
black hole, which tells nobody.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from typing import Self

from service.core.clock import SystemClock
from service.core.ports import Clock
from tests.faultproxy.pipe import Direction, Pipe
from tests.faultproxy.profiles import CLEAR, Fates, Profile
from tests.harness.sockets import TcpClient

__all__ = ["LINKS", "FaultProxy", "Link"]

LINKS = 4096
"""Connections at a time (count); one more is reset."""

# Bytes. Small, so that the server feels a slow or stalled link and not our buffers.
_BUFFER = 32 * 1024

_CHUNK = 16 * 1024


class Link:
    """One connection through the proxy.

    To be made in the task that runs it.

    Attributes:
        up: From the client to the server.
        down: From the server to the client.
    """

    def __init__(
        self, client: TcpClient, server: TcpClient, *, up: Pipe, down: Pipe
    ) -> None:
        self.up = up
        self.down = down
        self._client = client
        self._server = server
        self._orderly = True
        task = asyncio.current_task()
        assert task is not None
        self._task = task

    def cut(self) -> None:
        """End it on both sides (FIN); what is under way is lost."""
        self._task.cancel()

    def reset(self) -> None:
        """End it on both sides without order (RST); what is under way is lost."""
        self._orderly = False
        self._task.cancel()

    async def run(self) -> None:
        """Pass everything on until both sides have ended."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.up.run())
                group.create_task(self.down.run())
        except* OSError:
            self._orderly = False
        finally:
            for side in (self._client, self._server):
                if self._orderly:
                    side.close()
                else:
                    side.reset()


class FaultProxy:
    """Forwards connections to one port, as badly as it is told to.

    Args:
        target: As the attribute.
        host: Where the target is.
        listen: Address and port to listen on; port 0 for any.
        profile: Of both directions, from the beginning.
        seed: Of all that is random.
        buffer: SO_RCVBUF and SO_SNDBUF of its sockets, and the most that it holds of
            each direction of each connection, in bytes. What is in there counts as
            delivered for the sender.
        clock: Decides when segments arrive and connections are cut.

    Attributes:
        target: Port that it forwards to; may be changed for connections to come.
        port: Where it listens.
        seed: As given.
        accepted: Connections accepted so far.
        up: What all connections meet on the way to the server.
        down: The same on the way back.
        links: The connections there are.
        held: Connections whose client waits for `release`.
    """

    def __init__(
        self,
        target: int,
        *,
        host: str = "127.0.0.1",
        listen: tuple[str, int] = ("127.0.0.1", 0),
        profile: Profile = CLEAR,
        seed: int = 0,
        buffer: int = _BUFFER,
        clock: Clock | None = None,
    ) -> None:
        self.target = target
        self.port = 0
        self.seed = seed
        self.accepted = 0
        self.up = Direction("up", profile)
        self.down = Direction("down", profile)
        self.links: set[Link] = set()
        self.held = 0
        self._host = host
        self._listen = listen
        self._buffer = buffer
        self._clock = clock or SystemClock()
        self._released = asyncio.Event()
        self._released.set()
        self._listener = socket.socket()
        self._connecting: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        listener = self._listener
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer)
        listener.bind(self._listen)
        listener.listen(1024)
        self.port = listener.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._accepting is not None
        tasks = {self._accepting, *self._connecting}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()

    # Faults. Without a direction they are in both.

    def impair(self, profile: Profile, *directions: Direction) -> None:
        """Let the network be as *profile* for what is sent from now on.

        `Profile.cut_every` holds for connections to come.
        """
        for direction in directions or (self.up, self.down):
            direction.profile = profile

    def throttle(self, bytes_per_second: float | None, *directions: Direction) -> None:
        """Pass on so many bytes per second of each connection at most; None: all."""
        for direction in directions or (self.up, self.down):
            direction.profile = dataclasses.replace(
                direction.profile, rate=bytes_per_second
            )

    def stall(self, *directions: Direction) -> None:
        """Stop reading: buffers fill up, then writes to the proxy block."""
        for direction in directions or (self.up, self.down):
            direction.flowing.clear()

    def black_hole(self, *directions: Direction) -> None:
        """Read everything and pass nothing on, no end either."""
        for direction in directions or (self.up, self.down):
            direction.swallowing = True

    def resume(self) -> None:
        """End stalls and black holes.

        Connections of which something was swallowed stay black holes: TCP has no gaps.
        """
        for direction in (self.up, self.down):
            direction.swallowing = False
            direction.flowing.set()

    def cut(self) -> None:
        """End every connection on both sides (FIN); new ones are still accepted."""
        for link in self.links:
            link.cut()

    def reset(self) -> None:
        """Reset every connection on both sides (RST); new ones are still accepted."""
        for link in self.links:
            link.reset()

    def half_close(self, direction: Direction) -> None:
        """End one direction of every connection, after what is under way.

        What its sender still sends is dropped; the other direction goes on.
        """
        for link in self.links:
            (link.up if direction is self.up else link.down).finish()

    def hold(self) -> None:
        """Pass on the first thing that each client sends, and then hold the next."""
        self._released.clear()

    async def release(self) -> None:
        """Pass on what was held; return when the kernel has all of it."""
        self._released.set()
        while self.held:
            await asyncio.sleep(0)

    async def pass_through(self, pipe: Pipe) -> None:
        """Hold *pipe* if a `hold` says so (for the pipe itself)."""
        if self._released.is_set():
            return
        await pipe.read(_CHUNK)
        await pipe.readable()
        self.held += 1
        try:
            await self._released.wait()
            await pipe.read(_CHUNK)
            await pipe.empty()
        finally:
            self.held -= 1

    # Connections.

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = TcpClient(sock)
            self.accepted += 1
            if len(self._connecting) >= LINKS:
                client.reset()
                continue
            task = asyncio.create_task(self._serve(self.accepted, client))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _serve(self, number: int, client: TcpClient) -> None:
        try:
            server = await TcpClient.connect(
                self.target, host=self._host, receive_buffer=self._buffer
            )
        except BaseException as error:
            client.reset()
            if isinstance(error, OSError):
                return
            raise
        link = Link(
            client,
            server,
            up=self._pipe(number, client, server, self.up, self),
            down=self._pipe(number, server, client, self.down, None),
        )
        self.links.add(link)
        life = Fates(self.seed, number, "life").life(self.up.profile)
        end = None
        if life is not None:
            end = self._clock.call_at(self._clock.now() + life, link.cut)
        try:
            await link.run()
        finally:
            self.links.discard(link)
            if end is not None:
                end.cancel()

    def _pipe(
        self,
        number: int,
        source: TcpClient,
        sink: TcpClient,
        direction: Direction,
        gate: FaultProxy | None,
    ) -> Pipe:
        fates = Fates(self.seed, number, direction.name)
        return Pipe(
            source.sock,
            sink.sock,
            direction,
            fates,
            self._clock,
            self._buffer,
            gate,
        )

"""The transport's protocol while it calls a stream, without a task in between."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

from _speedups import SocketWriter
from service.server.stream import DirectReader

__all__ = ["DISCARD", "Diversion"]

# Bytes that are read and thrown away after our close, so that it reaches the peer; from
# one that sends more, nothing is read until its time is over. A message, and to spare.
DISCARD: Final = 256 * 1024


class Diverted(Protocol):
    """The TCP connection.

    Attributes:
        loop: The event loop that serves it.
        socket: Writes to it.
    """

    loop: asyncio.AbstractEventLoop
    socket: SocketWriter

    def pause_reading(self) -> None:
        """Read nothing; harmless when it is so."""

    def peer_ended(self) -> None:
        """Note that the peer sends nothing more."""

    def lost(self) -> None:
        """Note that the transport is closed."""


class Diversion(asyncio.Protocol):
    """The protocol; what it does not have is Hypercorn's.

    Args:
        target: The stream.
        reader: Hypercorn's protocol, which is told of the end, and of writing.
        tcp: The connection.

    Attributes:
        target: As given.
        reader: As given.
    """

    __slots__ = ("_discarded", "_discards", "_kept_eof", "_tcp", "reader", "target")

    def __init__(
        self, target: DirectReader, reader: asyncio.Protocol, tcp: Diverted
    ) -> None:
        self._tcp = tcp
        self._kept_eof = False
        self._discards = False
        self._discarded = 0  # bytes
        self.target = target
        self.reader = reader

    def data_received(self, data: bytes) -> None:
        """Take bytes from the peer."""
        if not self._discards:
            self.target.data_received(data)
            return
        # Unread data would make closing destroy what we wrote.
        self._discarded += len(data)
        if self._discarded > DISCARD:
            self._tcp.pause_reading()

    def eof_received(self) -> bool | None:
        """Take the end of the peer's data; return whether the transport stays."""
        self._kept_eof = not self._discards and not self.target.eof_received()
        return True if self._kept_eof else self._pass_eof()

    def pass_eof(self) -> None:
        """Handle the end of the peer's data, if the stream kept it back."""
        if self._kept_eof:
            self._pass_eof()

    def _pass_eof(self) -> bool | None:
        self._kept_eof = False
        stays = self.reader.eof_received()
        self._tcp.peer_ended()
        return stays

    def discard(self) -> None:
        """Throw away what comes from here on."""
        self._discards = True
        if self._kept_eof:
            self._tcp.loop.call_soon(self.pass_eof)

    def forget_task(self) -> None:
        """Let go of what asyncio's protocol keeps of the task that has served it.

        It has no public name (docs/decisions, 94).
        """
        kept: Any = self.reader
        if hasattr(kept, "_drain_waiters"):
            kept._task = None
            # A deque takes 760 bytes, and one waits at most: the flusher, or a pong.
            kept._drain_waiters = list(kept._drain_waiters)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the transport is closed."""
        self._tcp.socket.direct = False  # the descriptor is closed after this
        self.reader.connection_lost(exc)
        self._tcp.lost()

    def pause_writing(self) -> None:
        """Note that much waits in the transport."""
        self.reader.pause_writing()

    def resume_writing(self) -> None:
        """Note that little waits in the transport."""
        self.reader.resume_writing()

"""The protocol that gives a stream what its TCP connection reads."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from _speedups import SocketWriter
from service.server.shared_reads import SharedReads
from service.server.stream import DirectReader

__all__ = ["DISCARD", "Diversion"]

DISCARD = 256 * 1024
"""Bytes that are read and thrown away after our close, so that it reaches the peer.

From one that sends more, nothing is read until its time is over. It is a message, and
to spare.
"""


class Diverted(Protocol):
    """The TCP connection, as far as a diversion needs it.

    Attributes:
        loop: The event loop that serves it.
        socket: Writes to it.
    """

    loop: asyncio.AbstractEventLoop
    socket: SocketWriter

    def peer_ended(self) -> None:
        """Note that the peer sends nothing more."""

    def lost(self) -> None:
        """Note that the transport is closed."""


class Diversion(asyncio.Protocol):
    """The transport's protocol while a stream is given what is read.

    Args:
        target: The stream.
        tcp: The connection.
        transport: Its transport; the protocol that it has is given all the rest.
        reads: Reads instead of the transport; None: the transport itself does.

    Attributes:
        target: As given.
        reader: The protocol that the transport had.
    """

    __slots__ = (
        "_descriptor",
        "_discarded",
        "_discards",
        "_kept_eof",
        "_reads",
        "_tcp",
        "_transport",
        "reader",
        "target",
    )

    def __init__(
        self,
        target: DirectReader,
        tcp: Diverted,
        transport: asyncio.Transport,
        reads: SharedReads | None,
    ) -> None:
        self._tcp = tcp
        self._transport = transport
        self._kept_eof = False
        self._discards = False
        self._discarded = 0  # bytes
        self._reads = reads
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        self.target = target
        self.reader: asyncio.BaseProtocol = transport.get_protocol()
        transport.set_protocol(self)
        if reads is not None and not transport.is_closing():
            transport.pause_reading()
            reads.add(self._descriptor, self)

    def pause_reading(self) -> None:
        """Read nothing; harmless when it is so."""
        if self._reads is not None:
            self._reads.remove(self._descriptor)
        elif not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again; harmless when it is so."""
        if self._transport.is_closing():
            return
        if self._reads is not None:
            self._reads.add(self._descriptor, self)
        else:
            self._transport.resume_reading()

    def ended(self) -> None:
        """Let the transport read: of an end, or a failure, it tells as ever."""
        self._give_back()
        self.resume_reading()

    def _give_back(self) -> None:
        reads, self._reads = self._reads, None
        if reads is not None:
            reads.remove(self._descriptor)

    def end(self) -> None:
        """Give the transport its own protocol back, and let it read."""
        self._give_back()
        self._transport.set_protocol(self.reader)
        self.pass_eof()
        self.resume_reading()

    def discard(self) -> None:
        """Throw away what comes from here on."""
        self._give_back()
        self._discards = True
        if self._kept_eof:
            self._tcp.loop.call_soon(self.pass_eof)
        self.resume_reading()

    def forget_task(self) -> None:
        """Let go of what asyncio's protocol keeps of the task that has served it.

        It has no public name (docs/decisions, 94).
        """
        kept: Any = self.reader
        if hasattr(kept, "_drain_waiters"):
            kept._task = None
            # A deque takes 760 bytes, and one waits at most: the flusher, or a pong.
            kept._drain_waiters = list(kept._drain_waiters)

    # From the transport.

    def data_received(self, data: bytes) -> None:
        """Take bytes from the peer."""
        if self._reads is not None:
            self._transport.pause_reading()  # asyncio's reader has made it read again
        if not self._discards:
            self.target.data_received(data)
            return
        # Unread data would make closing destroy what we wrote.
        self._discarded += len(data)
        if self._discarded > DISCARD:
            self.pause_reading()

    def eof_received(self) -> bool | None:
        """Take the end of the peer's data; return whether the transport stays open."""
        self._kept_eof = not self._discards and not self.target.eof_received()
        return True if self._kept_eof else self._pass_eof()

    def _pass_eof(self) -> bool | None:
        self._kept_eof = False
        reader: Any = self.reader
        stays: bool | None = reader.eof_received()
        self._tcp.peer_ended()
        return stays

    def pass_eof(self) -> None:
        """Handle the end of the peer's data, which the target kept back."""
        if self._kept_eof:
            self._pass_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the transport is closed."""
        self._tcp.socket.direct = False  # the descriptor is closed after this
        self._give_back()
        self.reader.connection_lost(exc)
        self._tcp.lost()

    def pause_writing(self) -> None:
        """Note that much waits to be written."""
        self.reader.pause_writing()

    def resume_writing(self) -> None:
        """Note that it does not any more."""
        self.reader.resume_writing()

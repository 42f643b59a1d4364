"""Reads of all WebSockets together: one call of the event loop for all with data.

A transport takes the interpreter's lock for each socket that it reads, and lets it go
after that: a thread that waits for the lock, as the store's does when it has committed,
is woken each time, and finds it taken again. Here it is taken once for all. The sockets
are in an epoll of their own, which the event loop watches as one descriptor.

Invariants:

S1 A socket is in the epoll exactly while its reader is added. Its transport reads
   nothing meanwhile; if it does all the same, that comes before what is read here.
S2 A socket is taken out before its descriptor is free for another: asyncio and uvloop
   tell the protocol of the end first.
S3 A socket is read once in a call, and `_MOST` of them at most: the others have the
   calls to come, and so has everything else on the loop.
S4 The end, and an error, are not handled here: the socket goes back to its transport,
   which meets them itself. Nothing was read after them, so nothing is overtaken. One
   that the kernel does not let in stays with its transport, too.

Interleavings that could break these, each a test in tests/server/test_shared_reads.py:
a reader that takes itself or another one out while the ready ones are gone through; one
that fails; an end behind data; a reader that is added again in the same call.
"""

from __future__ import annotations

import asyncio
import select
from contextlib import suppress
from typing import Protocol

from _speedups import receive_now
from service.server.stream import DirectReader

__all__ = ["SharedReads"]

_MOST = 256  # sockets read in a call: some 5 ms of small messages


class _Reader(Protocol):
    """The owner of a socket in the epoll.

    Attributes:
        target: Takes what is read.
    """

    target: DirectReader

    def ended(self) -> None:
        """Give the socket back to its transport, whatever cannot be done here."""


class SharedReads:
    """The sockets of one event loop that are read together.

    Args:
        loop: The event loop.
    """

    __slots__ = ("_epoll", "_loop", "_readers")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._readers: dict[int, _Reader] = {}
        self._epoll = select.epoll()
        loop.add_reader(self._epoll.fileno(), self._read)

    def close(self) -> None:
        """Read nothing more; safe to call twice."""
        if not self._epoll.closed:
            self._readers.clear()
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def add(self, descriptor: int, reader: _Reader) -> None:
        """Read from *descriptor* for *reader*; harmless when that is so."""
        if descriptor not in self._readers and not self._epoll.closed:
            self._readers[descriptor] = reader
            try:
                self._epoll.register(descriptor, select.EPOLLIN)
            except OSError:  # the kernel has no room for one more
                reader.ended()

    def remove(self, descriptor: int) -> None:
        """Read no more from *descriptor*; harmless when that is so."""
        if self._readers.pop(descriptor, None) is not None:
            with suppress(OSError):  # it was closed all the same
                self._epoll.unregister(descriptor)

    def _read(self) -> None:
        readers = self._readers
        for descriptor, events in self._epoll.poll(0, _MOST):
            reader = readers.get(descriptor)
            if reader is None:
                continue  # one before it has taken it out
            data = b"" if events & select.EPOLLERR else receive_now(descriptor)
            if data is None:
                continue
            if not data:
                reader.ended()
                continue
            try:
                reader.target.data_received(data)
            except Exception as error:
                context = {"message": "what was read failed", "exception": error}
                self._loop.call_exception_handler(context)

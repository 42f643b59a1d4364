"""The open TCP connections of one process, and which new ones are accepted.

A connection *waits* for its peer from `ConnectionTracker.accept` until a request is
complete, and again from the answer on, until the next is complete or its socket is
free. A WebSocket never waits, nor does a connection in the reserve. Invariants: there
are never more waiting connections than ``server.silent``, and never more in the reserve
than `RESERVE`.

Where a new connection does not fit, the one that has waited longest makes room: of the
same address at the limit of an address, else of all. An attacker who opens sockets and
completes no request mostly cuts off sockets of the attack. If none waits, the new one
goes into the reserve, where only the health endpoints are served.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import sys
from collections import Counter
from typing import Any, Final, Protocol

from service.core.address_shares import AddressShares
from service.core.client_address import Proxies
from service.core.refusal_log import RefusalLog
from service.server.shared_reads import SharedReads
from service.settings import Settings

__all__ = ["RESERVE", "ConnectionTracker"]

RESERVE: Final = 16  # connections that are served the health endpoints alone
_RESERVED = 256  # descriptors kept for the store, for hooks, and for a burst of accepts
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class TrackedConnection(Protocol):
    """A TCP connection, as far as the tracker needs it.

    Attributes:
        loop: The event loop that serves it.
        peer: The key of the other end's address.
        trusted: Whether the other end is a trusted proxy.
        reserved: Whether it is in the reserve.
    """

    loop: asyncio.AbstractEventLoop
    peer: str
    trusted: bool
    reserved: bool

    def has_unread(self) -> bool:
        """Return whether the kernel has bytes of the peer that were not read."""

    def close(self) -> None:
        """Finish the connection, unless a request is there or on its way to us."""

    def abort(self) -> None:
        """Free the socket at once."""


class _Address:
    """The connections of one address.

    Attributes:
        sockets: Number of its open connections.
        waiting: Those that wait, the one that has waited longest first.
    """

    __slots__ = ("sockets", "waiting")

    def __init__(self) -> None:
        self.sockets = 0
        self.waiting: dict[TrackedConnection, None] = {}


class ConnectionTracker:
    """The open connections of one process.

    Attributes:
        settings: Those of the listener.
        proxies: The trusted ones; the limits of an address do not hold for them.
        shares: Of each turn of the event loop, for requests and for HTTP/2.
        reads: Reads WebSockets without TLS; None where the transports do.
        connections: The connections that are open.
        draining: True once new connections are turned away.
    """

    __slots__ = (
        "_addresses",
        "_emptied",
        "_per_address",
        "_refusals",
        "_reserve",
        "_waiting",
        "connections",
        "draining",
        "proxies",
        "reads",
        "settings",
        "shares",
    )

    def __init__(self, settings: Settings, refusals: RefusalLog) -> None:
        self.settings = settings.server
        self.proxies = Proxies(settings.server.trusted_proxies)
        self._per_address = settings.effective_limits.sockets_per_address or 0
        self._refusals = refusals
        self.shares = AddressShares(asyncio.get_running_loop)
        self.reads: SharedReads | None = None
        self.connections: set[TrackedConnection] = set()
        self.draining = False
        self._emptied: asyncio.Future[None] | None = None
        self._addresses: dict[str, _Address] = {}
        self._waiting: dict[TrackedConnection, None] = {}  # the longest first
        self._reserve: dict[TrackedConnection, None] = {}  # the oldest first

    def accept(self, connection: TrackedConnection, descriptor: int) -> bool:
        """Add a connection; return False while the process shuts down."""
        if self.draining:
            return False
        address = self._addresses.setdefault(connection.peer, _Address())
        address.sockets += 1
        self.connections.add(connection)
        limited = self._per_address and not connection.trusted
        if limited and address.sockets > self._per_address:
            self._fit("sockets", connection, address.waiting)
        elif descriptor > _last_descriptor():
            self._fit("descriptors", connection, self._waiting)
        else:
            self.waits(connection)
        return True

    def _fit(
        self,
        cause: str,
        connection: TrackedConnection,
        waiting: dict[TrackedConnection, None],
    ) -> None:
        """Cut off the longest of *waiting* for *connection*, or put it by."""
        if waiting:
            self._cut_off(cause, waiting)
            self.waits(connection)
            return
        self.refuse(cause, connection)
        connection.reserved = True
        self._reserve[connection] = None
        if len(self._reserve) > RESERVE:
            self._leave_reserve()

    def _cut_off(self, cause: str, waiting: dict[TrackedConnection, None]) -> None:
        # A request may have arrived on an idle one that we have not read yet.
        silent = (one for one in waiting if not one.has_unread())
        longest = next(silent, next(iter(waiting)))
        self.works(longest)
        self.refuse(cause, longest)
        longest.abort()

    def _leave_reserve(self) -> None:
        """Cut off the oldest of the address that has most; loopback's come last."""
        counts = Counter(one.peer for one in self._reserve if not _is_local(one.peer))
        most = counts.most_common(1)[0][0] if counts else None
        oldest = next(one for one in self._reserve if most in (None, one.peer))
        del self._reserve[oldest]
        oldest.abort()

    def waits(self, connection: TrackedConnection) -> None:
        """Note that a connection waits for its peer; harmless when it did."""
        if connection.reserved or connection not in self.connections:
            return
        self._waiting[connection] = None
        self._addresses[connection.peer].waiting[connection] = None
        if len(self._waiting) > self.settings.silent:
            self._cut_off("silent", self._waiting)

    def works(self, connection: TrackedConnection) -> None:
        """Note that a connection does not wait; harmless when it did not."""
        if connection in self._waiting:
            del self._waiting[connection]
            del self._addresses[connection.peer].waiting[connection]

    def remove(self, connection: TrackedConnection) -> None:
        """Forget a connection that has ended."""
        self.works(connection)
        self._reserve.pop(connection, None)
        self.connections.discard(connection)
        if self._emptied is not None and not self.connections:
            self._emptied.set_result(None)
            self._emptied = None
        address = self._addresses[connection.peer]
        address.sockets -= 1
        if not address.sockets:
            del self._addresses[connection.peer]

    async def emptied(self) -> None:
        """Wait until no connection is open; for one that waits, while draining."""
        if self.connections:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    def handle_loop_error(
        self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]
    ) -> None:
        """Count a failed accept; the event loop's exception handler.

        When no descriptor is left in spite of the reserve, asyncio accepts again a
        second later; uvloop accepts the connection with a spare descriptor, and
        closes it.
        """
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            self._refusals.add("descriptors", "unknown", loop.time())
        else:
            loop.default_exception_handler(context)

    def refuse(self, cause: str, connection: TrackedConnection, **details: str) -> None:
        """Count a connection that was cut off, and log it at a bounded rate."""
        now = connection.loop.time()
        self._refusals.add(cause, connection.peer, now, **details)

    def drain(self) -> None:
        """Turn new connections away and end those without a request."""
        self.draining = True
        for connection in list(self.connections):
            connection.close()

    def abort(self) -> None:
        """Free every socket that is still open, at once."""
        for connection in list(self.connections):
            connection.abort()


def _is_local(peer: str) -> bool:
    return peer.startswith("127.") or peer in ("::/64", "unix")


def _last_descriptor() -> int:
    """Return the highest descriptor that a connection may have.

    The system gives the lowest that is free, so a high one says that few are left.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return limit - min(_RESERVED, limit // 4)

"""The open TCP connections of one process, and which new ones are accepted.

Invariant: a connection is silent from `ConnectionTracker.accept` until
`request_received` or `remove`, whichever is first, and there are never more silent
connections than ``server.silent``.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import sys
from typing import Any, Final, Protocol

from service.core.refusals import Refusals
from service.settings import ServerSettings

__all__ = ["ConnectionTracker"]

_RESERVED = 256  # descriptors kept for the store, for hooks, and for a burst of accepts
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class TrackedConnection(Protocol):
    """A TCP connection, as far as the tracker needs it.

    Attributes:
        loop: The event loop that serves it.
        idle: Whether no request is under way.
    """

    loop: asyncio.AbstractEventLoop
    idle: bool

    @property
    def peer(self) -> str:
        """The key of the other end's address, for the log."""

    def finish(self) -> None:
        """Write nothing more, and free the socket once the peer has read."""

    def abort(self) -> None:
        """Free the socket at once."""


class ConnectionTracker:
    """The open connections of one process.

    Attributes:
        settings: Those of the listener.
        connections: The connections that are open.
        draining: True once new connections are turned away.
    """

    __slots__ = ("_refusals", "_silent", "connections", "draining", "settings")

    def __init__(self, settings: ServerSettings, refusals: Refusals) -> None:
        self.settings = settings
        self._refusals = refusals
        self.connections: set[TrackedConnection] = set()
        self.draining = False
        self._silent: dict[TrackedConnection, None] = {}  # the oldest first

    def accept(self, connection: TrackedConnection, descriptor: int) -> bool:
        """Add a connection, or refuse it because descriptors run out.

        When too many connections are silent, the one that has been silent longest is
        cut off. So an attacker who opens sockets and sends nothing mostly cuts off
        sockets of the attack.
        """
        if self.draining:
            return False
        if descriptor > _last_descriptor():
            self._refuse("descriptors", connection)
            return False
        if len(self._silent) >= self.settings.silent:
            oldest = next(iter(self._silent))
            self.request_received(oldest)
            self._refuse("silent", oldest)
            oldest.abort()
        self._silent[connection] = None
        self.connections.add(connection)
        return True

    def request_received(self, connection: TrackedConnection) -> None:
        """Count a connection as silent no more; harmless when it is not."""
        self._silent.pop(connection, None)

    def remove(self, connection: TrackedConnection) -> None:
        """Forget a connection that has ended."""
        self._silent.pop(connection, None)
        self.connections.discard(connection)

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

    def _refuse(self, cause: str, connection: TrackedConnection) -> None:
        self._refusals.add(cause, connection.peer, connection.loop.time())

    def drain(self) -> None:
        """Turn new connections away and end those without a request."""
        self.draining = True
        for connection in list(self.connections):
            if connection.idle:
                connection.finish()

    def abort(self) -> None:
        """Free every socket that is still open, at once."""
        for connection in list(self.connections):
            connection.abort()


def _last_descriptor() -> int:
    """Return the highest descriptor that a connection may have.

    The system gives the lowest that is free, so a high one says that few are left.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return limit - min(_RESERVED, limit // 4)

"""What the TCP connections of one process share, and which of them are let in.

Invariant: a connection is silent from `ConnectionTracker.admit` until `heard` or
`forget`, whichever is first, and there are never more of them than the setting says.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import sys
from typing import TYPE_CHECKING, Any, Final

from service.core.refusals import Refusals
from service.server.stream import LINGER
from service.settings import ServerSettings

if TYPE_CHECKING:
    from service.server.connection import TcpConnection

__all__ = ["ConnectionTracker"]

_RESERVED = 256  # descriptors kept for the store, for hooks, and for a burst of accepts
_NO_MORE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class ConnectionTracker:
    """What the connections of one process share.

    Attributes:
        settings: Of the listener.
        connections: Those that are open.
        draining: True once new connections are turned away.
    """

    __slots__ = ("_refusals", "_silent", "connections", "draining", "settings")

    def __init__(self, settings: ServerSettings, refusals: Refusals) -> None:
        self.settings = settings
        self._refusals = refusals
        self.connections: set[TcpConnection] = set()
        self.draining = False
        self._silent: dict[TcpConnection, None] = {}  # in the order in which they came

    def admit(self, connection: TcpConnection, descriptor: int) -> bool:
        """Take in a connection, or refuse it because descriptors run out.

        When too many have said nothing yet, the one that has for longest is cut off:
        whoever opens sockets and says nothing pushes out his own.
        """
        if self.draining:
            return False
        if descriptor > _last_descriptor():
            self._refused("descriptors", connection)
            return False
        if len(self._silent) >= self.settings.silent:
            oldest = next(iter(self._silent))
            self.heard(oldest)
            self._refused("silent", oldest)
            oldest.abort()
        self._silent[connection] = None
        self.connections.add(connection)
        return True

    def heard(self, connection: TcpConnection) -> None:
        """Take note of a connection's first request; harmless when it had one."""
        self._silent.pop(connection, None)

    def forget(self, connection: TcpConnection) -> None:
        """Take note that a connection is over."""
        self._silent.pop(connection, None)
        self.connections.discard(connection)

    def failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle what nobody caught: the event loop's exception handler.

        When no descriptor is left all the same, asyncio accepts again a second later;
        uvloop accepts the connection with one that it keeps, and closes it.
        """
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _NO_MORE:
            self._refusals.add("descriptors", "unknown", loop.time())
        else:
            loop.default_exception_handler(context)

    def _refused(self, cause: str, connection: TcpConnection) -> None:
        self._refusals.add(cause, connection.peer, connection.loop.time())

    def drain(self) -> None:
        """Turn new connections away and let go of those without a request."""
        self.draining = True
        for connection in list(self.connections):
            if connection.idle:
                connection.finish(LINGER)

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

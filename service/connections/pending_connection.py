"""A WebSocket that the handshake gate has let in and that has yet to connect."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Protocol

from service.connections.frame_quota import FrameQuota
from service.connections.refused_credentials import RefusedCredentials
from service.core.errors import Close
from service.core.hooks import ConnectEvent
from service.core.model import UserId
from service.session.command_queue import CommandQuota

__all__ = ["Gate", "PendingConnection"]

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Gate(Protocol):
    """The limits before authentication, as a pending connection sees them."""

    def forget(self, pending: PendingConnection) -> None:
        """Free the place of *pending*: it has connected, or is gone."""


class PendingConnection:
    """One WebSocket, from the handshake gate until it is gone.

    Args:
        address: The key of the client's address.
        origin: Its Origin header, "" for none.
        headers: The headers of its handshake that the connect hook is given.
        gate: Told when it has connected; None where no gate let it in.
        refused: Told when its credentials are refused; None where that is not counted.

    Attributes:
        address: The key of the client's address.
        origin: Its Origin header, "" for none.
        headers: As above, until it has connected.
        quota: The commands it may send; None for any number; set by the gate.
        frames: The other frames it may send; None where no gate let it in.
        close: Closes it while it is pending; set by its connection.
        kept: It goes on when the application's call ends, and `over` is called later.
    """

    __slots__ = (
        "_credentials",
        "_gate",
        "_refused",
        "address",
        "close",
        "frames",
        "headers",
        "kept",
        "origin",
        "quota",
    )

    def __init__(
        self,
        address: str,
        origin: str = "",
        headers: Mapping[str, str] = NO_HEADERS,
        gate: Gate | None = None,
        refused: RefusedCredentials | None = None,
    ) -> None:
        self.address = address
        self.origin = origin
        self.headers = headers
        self.quota: CommandQuota | None = None
        self.frames: FrameQuota | None = None
        self._credentials = b""
        self._gate = gate
        self._refused = refused
        self.close: Callable[[Close], None] | None = None
        self.kept = False

    def over(self) -> None:
        """Free its place at the gate, and let go of it: it is gone. Safe to repeat."""
        if self._gate is not None:
            self._gate.forget(self)
        self.close = None
        if self.frames is not None:
            self.frames.forget()

    def connected(self, user: UserId) -> None:
        """Free its place at the gate: it has connected as *user*."""
        if self._gate is not None:
            self._gate.forget(self)
        self.headers = NO_HEADERS  # secrets as a rule, and no longer of use
        self.close = None  # it would keep the connection in memory
        if self.quota is not None:
            self.quota.user = user
        if self.frames is not None:
            self.frames.connected()

    def blocked(self, event: ConnectEvent) -> bool:
        """Tell whether the credentials in *event* are not to be looked at."""
        if self._refused is None:
            return False
        self._credentials = _digest(event)
        return self._refused.blocked(self.address, self._credentials)

    def credentials_refused(self, *, connecting: bool) -> None:
        """Count credentials against its address.

        Args:
            connecting: They are those of its connect.
        """
        if self._refused is not None:
            credentials = self._credentials if connecting else b""
            self._refused.add(self.address, credentials)


def _digest(event: ConnectEvent) -> bytes:
    """Return a digest of all that a hook may take for credentials."""
    parts = (
        event.token,
        event.data or "",
        repr(event.headers),
        repr(event.http_headers),
    )
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).digest()

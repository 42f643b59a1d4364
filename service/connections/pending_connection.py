"""A WebSocket that the handshake gate let in and that has yet to connect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from service.core.errors import Close
from service.core.model import UserId
from service.session.allowance import CommandQuota

__all__ = ["Gate", "PendingConnection"]


class Gate(Protocol):
    """The limits before authentication, as a pending connection knows them."""

    def forget(self, visit: PendingConnection) -> None:
        """Count *visit* as pending no more."""
        ...

    def failed(self, address: str) -> None:
        """Count credentials from *address* that were refused."""
        ...


class PendingConnection:
    """One WebSocket, from the handshake gate until it is gone.

    Args:
        address: The key of the client's address.
        allowance: The commands it may send; None for any number.
        gate: Told of what becomes of it; None where no gate let it in.

    Attributes:
        address: The key of the client's address.
        allowance: The commands it may send; None for any number.
        origin: Its Origin header, "" for none.
        end: Closes it; set by whoever serves it while it waits.
    """

    __slots__ = ("_gate", "address", "allowance", "end", "origin")

    def __init__(
        self,
        address: str,
        allowance: CommandQuota | None = None,
        gate: Gate | None = None,
    ) -> None:
        self.address = address
        self.allowance = allowance
        self.origin = ""
        self._gate = gate
        self.end: Callable[[Close], None] | None = None

    def welcome(self, user: UserId) -> None:
        """Take note that it has connected, and who it is."""
        if self._gate is not None:
            self._gate.forget(self)
        self.end = None  # it would keep the connection in memory
        if self.allowance is not None:
            self.allowance.user = user

    def reject(self) -> None:
        """Take note that its credentials were refused."""
        if self._gate is not None:
            self._gate.failed(self.address)

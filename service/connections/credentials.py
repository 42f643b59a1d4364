"""Tickets and revocations; a revocation closes the connections that rely on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import SystemRandom

import structlog

from service.auth import Revocation, Revocations, Tickets, Verifier
from service.auth.authenticator import Authenticator
from service.connections.registry import Registry
from service.core.errors import CONNECTION_EXPIRED, StoreError
from service.core.health import Fault
from service.core.hooks import Handlers
from service.core.ports import Clock, State
from service.settings import Settings

__all__ = ["Credentials"]

log = structlog.get_logger("steadwire")


class Credentials:
    """The tickets and revocations of one process.

    Args:
        state: Where they are kept.
        verifier: Verifies tokens.
        clock: Times both.
        spawn: Runs a coroutine in the background.
        connections: The registry.

    Attributes:
        tickets: Let clients in.
        revocations: Keep users and tokens out.
    """

    def __init__(
        self,
        state: State,
        verifier: Verifier,
        clock: Clock,
        spawn: Callable[[Awaitable[None]], object],
        connections: Registry,
    ) -> None:
        self._verifier = verifier
        self._connections = connections
        self.tickets = Tickets(state, clock, SystemRandom())
        self.revocations = Revocations(
            state, clock, spawn=spawn, on_revoked=self._revoked, on_failure=_failed
        )

    def handlers(self, own: Handlers, settings: Settings) -> Handlers:
        """Return *own*, with those of tokens and tickets where it has none."""
        authenticator = Authenticator(self._verifier, self.revocations, self.tickets)
        return authenticator.handlers(own, settings)

    async def start(self) -> None:
        """Begin to read the revocations of other processes."""
        await self.revocations.start()

    def stop(self) -> None:
        """Read no more of them."""
        self.revocations.stop()

    def fault(self) -> Fault | None:
        """Return why revocations cannot be read, for the checks."""
        reason = self.revocations.fault
        return None if reason is None else Fault(reason, failing=False)

    def _revoked(self, revoked: Revocation) -> None:
        """Close the connections that rely on what was revoked."""
        found = list(self._connections)
        if not revoked.token_id:
            # Also those that wait for a slot: their credentials were accepted before
            # the revocation, and are not looked at again.
            found = self._connections.of_user(revoked.user)
            found += self._connections.waiting(revoked.user)
        for connection in found:
            user = connection.identity.user
            if revoked.covers(user, connection.token_id, connection.issued_at):
                connection.disconnect(CONNECTION_EXPIRED)


def _failed(error: StoreError) -> None:
    # The text is the store's, and names no token.
    log.error("what is revoked cannot be read", reason=str(error))

"""Tickets and revocations of a running service, and what they do to its connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import SystemRandom

import structlog

from service.auth import Revocations, Revoked, Tickets, Verifier
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
    """What the server API gives and takes.

    Args:
        state: Keeps it.
        verifier: Tells what a token says.
        clock: Of the service.
        spawn: Runs what takes time.
        connections: The live ones.

    Attributes:
        tickets: That let clients in.
        revocations: That keep them out.
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
            state, clock, spawn=spawn, told=self._revoked, failed=_failed
        )

    def handlers(self, own: Handlers, settings: Settings) -> Handlers:
        """Return *own*, and those of tokens and tickets where they are missing."""
        asked = Authenticator(self._verifier, self.revocations, self.tickets)
        return asked.handlers(own, settings)

    async def start(self) -> None:
        """Begin to follow what is revoked."""
        await self.revocations.start()

    def stop(self) -> None:
        """End it."""
        self.revocations.stop()

    def fault(self) -> Fault | None:
        """Return what is wrong, for the checks."""
        reason = self.revocations.fault
        return None if reason is None else Fault(reason, failing=False)

    def _revoked(self, revoked: Revoked) -> None:
        """Close the connections that stand on what was revoked."""
        found = list(self._connections)
        if not revoked.token_id:
            # And who waits for a slot: it was believed before it was revoked, and
            # nobody looks again.
            found = self._connections.of_user(revoked.user)
            found += self._connections.waiting(revoked.user)
        for connection in found:
            user = connection.identity.user
            if revoked.covers(user, connection.token_id, connection.issued_at):
                connection.disconnect(CONNECTION_EXPIRED)


def _failed(error: StoreError) -> None:
    # The text is of the store, and names no token.
    log.error("what is revoked cannot be read", reason=str(error))

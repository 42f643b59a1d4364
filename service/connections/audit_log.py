"""The audit log: one line for each decision about a client's identity."""

from __future__ import annotations

import contextlib

import structlog

from service.connections.pending_connection import PendingConnection
from service.core.errors import (
    CONNECTION_EXPIRED,
    INTERNAL,
    INVALID_TOKEN,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    UNAUTHORIZED,
    UNSUBSCRIBE_EXPIRED,
)
from service.core.model import ClientId
from service.metrics import Metrics
from service.session.port import Decision

__all__ = ["log_decision"]

# Codes for a client that tries out tokens. An expired token once was good, and a
# channel that is denied to a known user does not question who that is.
_BAD_CONNECTS = frozenset({UNAUTHORIZED.code, PERMISSION_DENIED.code})

log = structlog.get_logger("steadwire")


# The outcome label of a decision, by its code; any other code is a refusal.
_OUTCOMES = {
    0: "admitted",
    INTERNAL.code: "unavailable",
    TOKEN_EXPIRED.code: "expired",
    CONNECTION_EXPIRED.code: "expired",
    UNSUBSCRIBE_EXPIRED.code: "expired",
}


def log_decision(
    decision: Decision, client: ClientId, pending: PendingConnection, metrics: Metrics
) -> None:
    """Log and count *decision*, and tell the gate; nothing of a token is logged.

    Args:
        decision: What was decided, and about whom.
        client: The client of the connection.
        pending: What the handshake gate knows of it.
        metrics: Counts.
    """
    metrics.auth.add(_OUTCOMES.get(decision.code, "refused"))
    denied = decision.about == "connect" and decision.code in _BAD_CONNECTS
    if denied or decision.code == INVALID_TOKEN.code:
        pending.credentials_refused(connecting=decision.about == "connect")
    # A log that cannot be written must not keep a client out.
    with contextlib.suppress(Exception):
        log.info(
            "authentication",
            about=decision.about,
            outcome="refused" if decision.code else "admitted",
            code=decision.code,
            reason=decision.reason,
            client=client,
            user=decision.user,
            address=pending.address,
        )

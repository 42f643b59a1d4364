"""The audit log: one line for each decision about who somebody is."""

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

# What somebody who tries out tokens gets. An expired token once was good, and a channel
# that is denied to who is known says nothing about who he is.
_BAD_CONNECTS = frozenset({UNAUTHORIZED.code, PERMISSION_DENIED.code})

log = structlog.get_logger("steadwire")


# How a decision is counted, by its code; any other code is a refusal.
_OUTCOMES = {
    0: "admitted",
    INTERNAL.code: "unavailable",
    TOKEN_EXPIRED.code: "expired",
    CONNECTION_EXPIRED.code: "expired",
    UNSUBSCRIBE_EXPIRED.code: "expired",
}


def log_decision(
    decision: Decision, client: ClientId, visit: PendingConnection, metrics: Metrics
) -> None:
    """Log and count *decision*, and tell the door; nothing of a token is logged.

    Args:
        decision: About whom, and what.
        client: The connection.
        visit: Where it comes from.
        metrics: Counts.
    """
    metrics.auth.add(_OUTCOMES.get(decision.code, "refused"))
    denied = decision.about == "connect" and decision.code in _BAD_CONNECTS
    if denied or decision.code == INVALID_TOKEN.code:
        visit.reject()
    # A log that cannot be written must not decide who is let in.
    with contextlib.suppress(Exception):
        log.info(
            "authentication",
            about=decision.about,
            outcome="refused" if decision.code else "admitted",
            code=decision.code,
            reason=decision.reason,
            client=client,
            user=decision.user,
            address=visit.address,
        )

"""The audit log: one line for each decision about who somebody is."""

from __future__ import annotations

import contextlib

import structlog

from service.errors import INVALID_TOKEN, PERMISSION_DENIED, UNAUTHORIZED
from service.model import ClientId
from service.session.port import Decision
from service.transports.door import Visit

__all__ = ["log_decision"]

# What somebody who tries out tokens would get; an expired token once was good.
_BAD = frozenset({UNAUTHORIZED.code, PERMISSION_DENIED.code, INVALID_TOKEN.code})

log = structlog.get_logger("steadwire")


def log_decision(decision: Decision, client: ClientId, visit: Visit) -> None:
    """Log *decision*, and tell the door; nothing that was in a token is logged.

    Args:
        decision: About whom, and what.
        client: The connection.
        visit: Where it comes from.
    """
    if decision.code in _BAD:
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

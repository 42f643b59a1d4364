"""Answers of refusals: a status, and ``{"error":{"code","message","temporary"}}``.

The code is a stable word: one of those in `service.agents.errors`, of those below, or a
row of the error table with ``_`` for spaces (``permission_denied``).

| code | status | what it says |
|---|---|---|
| ``agent_unknown`` | 404 | no agent of this name is in the settings |
| ``gone`` | 410 | the history does not have the next event any more: join anew |
| ``gap`` | 409 | an event was left out: ``next`` is the number that is expected |
| ``agents_missing`` | 501 | the server was installed without ``steadwire[agents]`` |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import falcon
import falcon.asgi
import msgspec

from service.agents.errors import AgentsMissing, Gone, Refused
from service.core.errors import (
    INTERNAL,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
    UNKNOWN_CHANNEL,
    ErrorReply,
    ReplyError,
    StoreError,
    StoreFull,
)

__all__ = ["answers_errors", "failure", "failure_of"]

_RETRY_AFTER = 1.0  # s; for what is temporary

_STATUSES = {
    "invalid_event": 400,
    "wrong_order": 409,
    "run_over": 409,
    "too_large": 413,
    "thread_busy": 409,
    "run_exists": 409,
    "run_unknown": 404,
    "too_many_runs": 503,
    "run_lost": 409,
}
_ROWS = {
    UNAUTHORIZED: 401,
    TOKEN_EXPIRED: 401,
    PERMISSION_DENIED: 403,
    UNKNOWN_CHANNEL: 404,
    NOT_AVAILABLE: 404,
    TOO_MANY_REQUESTS: 429,
    INTERNAL: 503,
}

Responder = TypeVar("Responder", bound=Callable[..., Any])


def failure(
    status: int,
    code: str,
    message: str,
    *,
    temporary: bool = False,
    retry_after: float = 0.0,
    more: Mapping[str, object] | None = None,
) -> falcon.HTTPStatus:
    """Return an answer of a refusal, to be raised."""
    error: dict[str, object] = {"code": code, "message": message}
    headers = {}
    if temporary:
        error["temporary"] = True
        headers["Retry-After"] = str(math.ceil(retry_after or _RETRY_AFTER))
    text = msgspec.json.encode({"error": error, **(more or {})}).decode()
    return falcon.HTTPStatus(
        status, headers={"Content-Type": falcon.MEDIA_JSON, **headers}, text=text
    )


def failure_of(
    error: Exception, more: Mapping[str, object] | None = None
) -> falcon.HTTPStatus | None:
    """Return the answer for an exception; None for one that is not a refusal."""
    match error:
        case Refused():
            return failure(
                _STATUSES[error.code],
                error.code,
                error.reason,
                temporary=error.temporary,
                more=more,
            )
        case Gone():
            words = "the history does not have the next event any more: join anew"
            return failure(410, "gone", words, more=more)
        case ReplyError():
            return _of_row(error.error, more)
        case StoreError():
            full = isinstance(error, StoreFull)
            return _of_row(TOO_MANY_REQUESTS if full else INTERNAL, more)
        case falcon.HTTPInvalidParam():
            words = error.description or "a parameter is not valid"
            return failure(400, "bad_request", words, more=more)
        case AgentsMissing():
            words = (
                "the server was installed without its agents: "
                "pip install 'steadwire[agents]', and start it again"
            )
            return failure(501, "agents_missing", words, more=more)
    return None


def _of_row(row: ErrorReply, more: Mapping[str, object] | None) -> falcon.HTTPStatus:
    status = _ROWS.get(row, 503 if row.temporary else 400)
    code = row.message.replace(" ", "_")
    return failure(status, code, row.message, temporary=row.temporary, more=more)


def answers_errors(responder: Responder) -> Responder:
    """Let a responder of Falcon answer the refusals that it raises."""

    @wraps(responder)
    async def answering(*args: Any, **options: Any) -> None:
        try:
            await responder(*args, **options)
        except Exception as error:
            answer = failure_of(error)
            if answer is None:
                raise
            raise answer from None

    return answering  # type: ignore[return-value]  # it takes what the responder takes

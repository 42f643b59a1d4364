"""``/api/ticket``, ``revoke_token`` and ``invalidate_user_tokens``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from service.auth.revocations import DEFAULT_TTL, TooManyRevocations
from service.auth.tickets import TICKET_TTL, TicketRefused
from service.core.errors import BAD_REQUEST, LIMIT_EXCEEDED, ReplyError
from service.core.json_fields import Base64, ServerSubscription
from service.core.model import UserId
from service.http.api.context import ApiContext, Integer, User

__all__ = [
    "InvalidateRequest",
    "RevokeRequest",
    "TicketRequest",
    "TicketResult",
    "invalidate_user_tokens",
    "revoke_token",
    "ticket",
]

# With this limit and that of users an entry of a State is large enough, however it is
# escaped.
TokenId = Annotated[str, Meta(min_length=1, max_length=1000)]
Origin = Annotated[str, Meta(max_length=255, description="As https://chat.example.org")]
Lifetime = Annotated[int, Meta(ge=1, le=int(TICKET_TTL))]


class TicketRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Issue a ticket, with which a client may connect once; *user* "" is anonymous.

    Attributes:
        ttl: Seconds for which the ticket is valid.
        origin: The Origin header that the client must send; absent for any.
        expire_at: Unix seconds at which the connection expires; absent for never.
        info: Information for others.
        meta: An object for the server alone.
        channels: Subscribed on the server's side.
        subs: The same with options; wins over *channels*.
    """

    user: User
    ttl: Lifetime | None = None
    origin: Origin | None = None
    expire_at: Integer | None = None
    info: Raw | UnsetType = UNSET
    b64info: Base64 | None = None
    meta: Raw | UnsetType = UNSET
    channels: list[str] | None = None
    subs: dict[str, ServerSubscription] | None = None


class TicketResult(msgspec.Struct):
    """A ticket, to be sent as the token of a connect; *expires_in* is in seconds."""

    ticket: str
    expires_in: Integer


class RevokeRequest(msgspec.Struct, kw_only=True):
    """Revoke the token whose ``jti`` is *uid*.

    Attributes:
        expire_at: Unix seconds until which it is revoked: the time at which the token
            itself expires, or later. Absent: for a day.
    """

    uid: TokenId
    expire_at: Integer | None = None


class InvalidateRequest(msgspec.Struct, kw_only=True):
    """Revoke a user's connection and subscription tokens.

    Attributes:
        issued_before: Tokens with an earlier ``iat`` are revoked, in Unix seconds;
            absent for now. A token without ``iat`` is always revoked.
        expire_at: As in the revocation of one token.
    """

    user: User
    issued_before: Integer | None = None
    expire_at: Integer | None = None


async def ticket(context: ApiContext, request: TicketRequest) -> str:
    """Issue a ticket."""
    for channel in request.subs or request.channels or ():
        context.rules(channel)
    claims: dict[str, Any] = {"sub": request.user}
    for name in ("expire_at", "info", "b64info", "meta", "channels", "subs"):
        value = getattr(request, name)
        if value is not None and value is not UNSET:
            claims[name] = value
    ttl = request.ttl or int(TICKET_TTL)
    try:
        given = await context.runtime.tickets.issue(
            claims, origin=request.origin or "", ttl=ttl
        )
    except TicketRefused as refusal:
        error = LIMIT_EXCEEDED if refusal.full else BAD_REQUEST
        raise ReplyError(error) from None
    return msgspec.json.encode(TicketResult(given, ttl)).decode()


async def revoke_token(context: ApiContext, request: RevokeRequest) -> str:
    """Revoke one token."""
    end = _end(context, request.expire_at)
    try:
        await context.runtime.revocations.revoke_token(request.uid, end)
    except TooManyRevocations:
        raise ReplyError(LIMIT_EXCEEDED) from None
    return "{}"


async def invalidate_user_tokens(
    context: ApiContext, request: InvalidateRequest
) -> str:
    """Revoke a user's tokens."""
    end = _end(context, request.expire_at)
    before = request.issued_before or context.runtime.clock.wall()
    revocations = context.runtime.revocations
    try:
        await revocations.revoke_user(UserId(request.user), before, end)
    except TooManyRevocations:
        raise ReplyError(LIMIT_EXCEEDED) from None
    return "{}"


def _end(context: ApiContext, expire_at: int | None) -> float:
    now = context.runtime.clock.wall()
    if expire_at is None:
        return now + DEFAULT_TTL
    if expire_at <= now:
        words = "expire_at is over: it would revoke nothing"
        raise ReplyError(BAD_REQUEST, reason=words)
    return float(expire_at)

"""Claims of connection and subscription tokens (RFC 7519; docs/tokens.md).

Unknown claims are ignored; a claim of a wrong type makes the token invalid.
Payloads (``info``, ``data``, ``meta``) stay JSON text; ``b64info`` and ``b64data`` hold
it in base64 and win over the claim without b64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from _speedups import check
from service.auth.errors import TokenExpired, TokenInvalid
from service.core import json_fields
from service.core.errors import ReplyError
from service.core.hooks import Raw as RawPayload
from service.core.hooks import ServerSubscription
from service.core.json_fields import optional_payload_of, override_of
from service.core.model import (
    NO_OVERRIDE,
    USER_SIZE,
    Channel,
    ClientId,
    Override,
    RawJson,
    UserId,
    is_user,
)

__all__ = [
    "ConnectionClaims",
    "SubscriptionClaims",
    "read_connection",
    "read_subscription",
]

ANY = ClientId("")

LEEWAY = 5.0
"""Seconds that ``nbf`` may be in the future, for the issuer's clock may be fast."""


@dataclass(frozen=True, slots=True)
class ConnectionClaims:
    """The claims of a connection token.

    Attributes:
        user: The user of the connection; "" is anonymous.
        expire_at: Unix seconds at which the connection expires; 0 for never.
        token_id: The token's ``jti``, "" for none.
        issued_at: The token's ``iat`` in Unix seconds, 0 for none.
        info: Shown to others.
        meta: A JSON object for the server alone.
        subscriptions: Its server-side subscriptions, by their channel, which need not
            be a valid name.
    """

    user: UserId
    expire_at: float = 0.0
    token_id: str = ""
    issued_at: float = 0.0
    info: RawJson | None = field(default=None, repr=False)
    meta: RawJson | None = field(default=None, repr=False)
    subscriptions: Mapping[str, ServerSubscription] = field(
        default_factory=dict, repr=False
    )


@dataclass(frozen=True, slots=True)
class SubscriptionClaims:
    """The claims of a subscription token.

    Attributes:
        user: The user who may subscribe; "" is anonymous.
        channel: The channel.
        client: The only connection that may subscribe; "" for all of the user's.
        expire_at: Unix seconds at which the subscription expires; 0 for never.
        token_id: The token's ``jti``, "" for none.
        issued_at: The token's ``iat`` in Unix seconds, 0 for none.
        info: Shown to others in the channel.
        data: Sent to the client with the subscription.
        override: Options of the channel that differ.
    """

    user: UserId
    channel: Channel
    client: ClientId = ANY
    expire_at: float = 0.0
    token_id: str = ""
    issued_at: float = 0.0
    info: RawJson | None = field(default=None, repr=False)
    data: RawJson | None = field(default=None, repr=False)
    override: Override = NO_OVERRIDE


_Time = Annotated[float, msgspec.Meta(ge=0, le=2**53)]  # Unix seconds


class _Value(json_fields.BoolValue):
    value: bool  # required, unlike in the server API


class _Override(json_fields.Override):
    presence: _Value | None = None
    join_leave: _Value | None = None
    force_push_join_leave: _Value | None = None
    force_recovery: _Value | None = None
    force_positioning: _Value | None = None


class _Subscription(json_fields.ServerSubscription):
    override: _Override | None = None


class _Claims(msgspec.Struct, kw_only=True):
    sub: str | None = None
    exp: _Time | None = None
    nbf: _Time | None = None
    iat: _Time | None = None
    jti: str | None = None
    aud: str | list[str] | None = None
    iss: str | None = None
    expire_at: _Time | None = None
    info: Raw | UnsetType = UNSET
    b64info: str | None = None


class _Connection(_Claims, kw_only=True):
    channel: Raw | UnsetType = UNSET
    channels: list[str] | None = None
    subs: dict[str, _Subscription] | None = None
    meta: Raw | UnsetType = UNSET


class _SubscriptionToken(_Claims, kw_only=True):
    channel: Annotated[str, msgspec.Meta(min_length=1)]
    client: str | None = None
    data: Raw | UnsetType = UNSET
    b64data: str | None = None
    override: _Override | None = None


C = TypeVar("C", bound=_Claims)


def read_connection(
    payload: bytes, now: float, *, audience: str, issuer: str
) -> ConnectionClaims:
    """Return the claims in the payload of a connection token.

    Args:
        payload: That of a token whose signature is verified.
        now: Unix seconds.
        audience: Must be among ``aud``; "" for any.
        issuer: Must be ``iss``; "" for any.

    Raises:
        TokenExpired: It is not valid now.
        TokenInvalid: It is never valid.
    """
    claims = _decode(payload, _Connection)
    if optional_payload_of(claims.channel, None) is not None:
        raise TokenInvalid("a connection token has no claim channel")
    _check_registered(claims, now, audience, issuer)
    meta = optional_payload_of(claims.meta, None)
    if meta is not None and not meta.startswith("{"):
        raise TokenInvalid("the claim meta must be an object")
    subs = claims.subs or {name: _Subscription() for name in claims.channels or ()}
    return ConnectionClaims(
        user=UserId(claims.sub or ""),
        expire_at=_expiry(claims, now),
        token_id=claims.jti or "",
        issued_at=claims.iat or 0.0,
        info=_payload(claims.info, claims.b64info),
        meta=meta,
        subscriptions={
            name: ServerSubscription(
                _wrapped(_payload(sub.info, sub.b64info)),
                _wrapped(_payload(sub.data, sub.b64data)),
                override_of(sub.override),
            )
            for name, sub in subs.items()
        },
    )


def read_subscription(
    payload: bytes, now: float, *, audience: str, issuer: str
) -> SubscriptionClaims:
    """Return the claims in the payload of a subscription token; as `read_connection`.

    Raises:
        TokenExpired: It is not valid now.
        TokenInvalid: It is never valid.
    """
    claims = _decode(payload, _SubscriptionToken)
    _check_registered(claims, now, audience, issuer)
    return SubscriptionClaims(
        user=UserId(claims.sub or ""),
        channel=Channel(claims.channel),
        client=ClientId(claims.client or ""),
        expire_at=_expiry(claims, now),
        token_id=claims.jti or "",
        issued_at=claims.iat or 0.0,
        info=_payload(claims.info, claims.b64info),
        data=_payload(claims.data, claims.b64data),
        override=override_of(claims.override),
    )


def _decode(payload: bytes, shape: type[C]) -> C:
    try:
        return msgspec.json.decode(check(payload), type=shape)
    except msgspec.ValidationError as error:
        # It names types and the path of known claims; keys and values are not quoted.
        raise TokenInvalid(f"a claim is not what it must be: {error}") from None
    except ValueError:
        raise TokenInvalid("the payload is not JSON") from None


def _check_registered(claims: _Claims, now: float, audience: str, issuer: str) -> None:
    if not is_user(claims.sub or ""):
        raise TokenInvalid(f"sub has more than {USER_SIZE} bytes")
    if issuer and claims.iss != issuer:
        raise TokenInvalid("it is of another issuer")
    named = [claims.aud] if isinstance(claims.aud, str) else claims.aud or []
    if audience and audience not in named:
        raise TokenInvalid("it is for another audience")
    if claims.exp is not None and now >= claims.exp:
        raise TokenExpired("it has expired")
    if claims.nbf is not None and now + LEEWAY < claims.nbf:
        raise TokenExpired("it is not valid yet")


def _expiry(claims: _Claims, now: float) -> float:
    if claims.expire_at is None:
        return claims.exp or 0.0
    if 0 < claims.expire_at <= now:
        raise TokenExpired("its expire_at is in the past")
    return claims.expire_at


def _wrapped(text: RawJson | None) -> RawPayload | None:
    return None if text is None else RawPayload(text)


def _payload(value: Raw | UnsetType, encoded: str | None) -> RawJson | None:
    try:
        return optional_payload_of(value, encoded)
    except ReplyError:
        raise TokenInvalid("a b64 claim does not hold JSON in base64") from None

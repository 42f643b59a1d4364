"""Tokens: who a client is, and what it may subscribe to. No I/O.

`Verifier` is the way in. A key that is published elsewhere and not known yet is
`Pending`; `service.auth.jwks` gets it.
"""

from __future__ import annotations

from service.auth.api_keys import (
    FULL_ACCESS,
    ApiKey,
    Scope,
    digest_of,
    find_key,
    read_api_keys,
)
from service.auth.claims import (
    ConnectionClaims,
    ServerSubscription,
    SubscriptionClaims,
)
from service.auth.errors import (
    KeysUnavailable,
    TokenError,
    TokenExpired,
    TokenInvalid,
)
from service.auth.keys import Key, KeySet, read_jwks
from service.auth.revocations import (
    DEFAULT_TTL,
    Revocations,
    Revoked,
    RevokedTooMany,
)
from service.auth.tickets import TICKET_TTL, TicketRefused, Tickets
from service.auth.verifier import Pending, Verifier

__all__ = [
    "DEFAULT_TTL",
    "FULL_ACCESS",
    "ApiKey",
    "ConnectionClaims",
    "Key",
    "KeySet",
    "KeysUnavailable",
    "Pending",
    "Revocations",
    "Revoked",
    "RevokedTooMany",
    "Scope",
    "ServerSubscription",
    "SubscriptionClaims",
    "TICKET_TTL",
    "TicketRefused",
    "Tickets",
    "TokenError",
    "TokenExpired",
    "TokenInvalid",
    "Verifier",
    "digest_of",
    "find_key",
    "read_api_keys",
    "read_jwks",
]

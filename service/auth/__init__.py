"""Authentication and permissions: tokens, tickets, revocations, keys of the server API.

`Verifier` verifies tokens without I/O; `jwks` fetches the keys that it lacks, and
`authenticator` makes the answers to clients of both.
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
from service.auth.keys import Key, read_jwks
from service.auth.revocations import (
    DEFAULT_TTL,
    Revocation,
    Revocations,
    TooManyRevocations,
)
from service.auth.tickets import TICKET_TTL, TicketRefused, Tickets
from service.auth.verifier import RemoteKeys, UnfetchedKey, Verifier

__all__ = [
    "DEFAULT_TTL",
    "FULL_ACCESS",
    "TICKET_TTL",
    "ApiKey",
    "ConnectionClaims",
    "Key",
    "KeysUnavailable",
    "RemoteKeys",
    "Revocation",
    "Revocations",
    "Scope",
    "ServerSubscription",
    "SubscriptionClaims",
    "TicketRefused",
    "Tickets",
    "TokenError",
    "TokenExpired",
    "TokenInvalid",
    "TooManyRevocations",
    "UnfetchedKey",
    "Verifier",
    "digest_of",
    "find_key",
    "read_api_keys",
    "read_jwks",
]

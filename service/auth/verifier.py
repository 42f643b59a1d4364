"""Verification of tokens (JWTs): from the text of a token to its claims, or an error.

Nothing of a token is used, not even parsed, before its signature is verified with a key
for its algorithm, except ``alg`` and ``kid``, which choose the key.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import msgspec
from msgspec import Raw

from _speedups import check
from service.auth.claims import (
    ConnectionClaims,
    SubscriptionClaims,
    read_connection,
    read_subscription,
)
from service.auth.errors import TokenInvalid
from service.auth.keys import ASYMMETRIC, HMAC, MAX_KID, Key, read_settings
from service.core.errors import SettingsError
from service.settings import Settings, TokenSettings

__all__ = ["RemoteKeys", "UnfetchedKey", "Verifier"]

MAX_TOKEN = 16 * 1024  # characters; a longer token is invalid

# Exactly base64url (RFC 7515, 2): decoders skip other characters, and one token would
# have many spellings.
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.([A-Za-z0-9_-]*)")


class RemoteKeys(Protocol):
    """The keys that an issuer publishes."""

    def known(self, kid: str) -> tuple[Key, ...] | None:
        """Return the keys named *kid*; None when `key` has to be awaited first.

        Synchronous, and never waits.
        """

    async def key(self, kid: str) -> None:
        """Return when `known` has the keys named *kid*, and not earlier.

        Raises:
            TokenInvalid: There is no such key.
            KeysUnavailable: The issuer cannot be asked at present.
        """


class UnfetchedKey(NamedTuple):
    """A token's key that was not fetched yet: await ``keys.key(kid)``, verify again.

    Attributes:
        kid: The name of the key.
        keys: The keys among which it may be published.
    """

    kid: str
    keys: RemoteKeys


class Verifier:
    """Verifies tokens, without I/O: it returns `UnfetchedKey` for a key it lacks.

    Args:
        settings: The keys of connection and of subscription tokens.
        now: Returns Unix seconds.
        remote: The keys of each `jwks_public_endpoint`, by its URL.

    Raises:
        SettingsError: A setting is not a key, or *remote* lacks an endpoint.
    """

    def __init__(
        self,
        settings: Settings,
        now: Callable[[], float],
        remote: Mapping[str, RemoteKeys] | None = None,
    ) -> None:
        own = settings.subscription_token.has_keys
        self._now = now
        self._users_only = settings.client.disallow_anonymous_connection_tokens
        self._connection = _TokenKeys(settings.token, "token", remote or {})
        self._subscription = (
            _TokenKeys(settings.subscription_token, "subscription_token", remote or {})
            if own
            else self._connection
        )

    def connection(self, token: str) -> ConnectionClaims | UnfetchedKey:
        """Return the claims of a connection token.

        Raises:
            TokenExpired: It is not valid now: 109 on connect, close 3005 on refresh.
            TokenInvalid: It is never valid: close 3500.
        """
        now, keys = self._now(), self._connection
        payload = keys.payload(token, now)
        if isinstance(payload, UnfetchedKey):
            return payload
        claims = read_connection(
            payload, now, audience=keys.audience, issuer=keys.issuer
        )
        if self._users_only and not claims.user:
            raise TokenInvalid(
                "it names no user: client.disallow_anonymous_connection_tokens"
            )
        return claims

    def subscription(self, token: str) -> SubscriptionClaims | UnfetchedKey:
        """Return the claims of a subscription token.

        Raises:
            TokenExpired: It is not valid now: 109, push 2501 on sub_refresh.
            TokenInvalid: It is never valid: 103.
        """
        now, keys = self._now(), self._subscription
        payload = keys.payload(token, now)
        if isinstance(payload, UnfetchedKey):
            return payload
        return read_subscription(
            payload, now, audience=keys.audience, issuer=keys.issuer
        )


class _TokenKeys:
    """The keys, the audience and the issuer of one kind of tokens."""

    __slots__ = ("_keys", "_remote", "audience", "issuer")

    def __init__(
        self, settings: TokenSettings, where: str, remote: Mapping[str, RemoteKeys]
    ) -> None:
        self.audience = settings.audience
        self.issuer = settings.issuer
        self._keys = read_settings(settings, where)
        endpoint = settings.jwks_public_endpoint
        self._remote = remote.get(endpoint) if endpoint else None
        if endpoint and self._remote is None:
            raise SettingsError(
                f"{where}.jwks_public_endpoint is not among the endpoints"
            )

    def payload(self, token: str, now: float) -> bytes | UnfetchedKey:
        header, signature = _split(token)
        keys = self._candidates(header, now)
        if isinstance(keys, UnfetchedKey):
            return keys
        if not keys:
            raise TokenInvalid(self._why_none(header.alg, now))
        if not _canonical(signature):
            raise TokenInvalid("the signature is not in base64url")
        *others, last = keys
        for key in others:
            try:
                return key.payload(token, header.alg)
            except TokenInvalid:
                continue
        return last.payload(token, header.alg)

    def _candidates(self, header: _Header, now: float) -> list[Key] | UnfetchedKey:
        keys: tuple[Key, ...] | None = self._keys
        if self._remote is not None and header.kid and header.alg in ASYMMETRIC:
            keys = self._remote.known(header.kid)
            if keys is None:
                return UnfetchedKey(header.kid, self._remote)
        return [
            key for key in keys or () if header.alg in key.algorithms and key.valid(now)
        ]

    def _why_none(self, algorithm: str, now: float) -> str:
        """Return why no key is for *algorithm*."""
        secret = any("HS256" in key.algorithms and key.valid(now) for key in self._keys)
        if algorithm in HMAC and secret:
            least = HMAC[algorithm]
            return (
                f"hmac_secret_key is too short for {algorithm}: it needs {least} bytes"
            )
        return "no key is for its algorithm"


class _Header(msgspec.Struct):
    alg: str
    kid: str | None = None
    crit: Raw = Raw()


def _split(token: str) -> tuple[_Header, str]:
    """Return a token's header and its signature as text.

    Raises:
        TokenInvalid: It is not a JWT (RFC 7519), or has parts that are not supported.
    """
    if len(token) > MAX_TOKEN:
        raise TokenInvalid(f"it is longer than {MAX_TOKEN} characters")
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise TokenInvalid("it is not a JWT")
    first, signature = match.groups()
    try:
        # `check` bounds the depth: PyJWT parses the header again.
        text = check(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
        header = msgspec.json.decode(text, type=_Header)
    except ValueError:
        raise TokenInvalid("its header is not JSON of the right shape") from None
    if bytes(header.crit):
        # RFC 7515, 4.1.11: extensions listed there must be understood.
        raise TokenInvalid("its header has critical parts")
    if header.kid is not None and len(header.kid) > MAX_KID:
        raise TokenInvalid(f"its kid is longer than {MAX_KID} characters")
    return header, signature


def _canonical(part: str) -> bool:
    """Return whether encoding the bytes of *part* gives *part* again.

    The last character of base64 may have bits that no byte uses.
    """
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        return False
    return base64.urlsafe_b64encode(raw).decode().rstrip("=") == part

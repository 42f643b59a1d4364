"""From the text of a token to what it says, or to why it is not believed.

Nothing of a token is believed, not even looked at, before its signature was verified
with a key that is for its algorithm, except ``alg`` and ``kid``, which choose the key.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

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
from service.auth.keys import ASYMMETRIC, Key, RemoteKeys, read_settings
from service.core.errors import SettingsError
from service.settings import Settings, TokenSettings

__all__ = ["Pending", "Verifier"]

MAX_TOKEN = 16 * 1024  # characters; a longer one is not looked at
MAX_KID = 200  # characters; a key with a longer name is not asked for

# Exactly base64url (RFC 7515, 2): decoders skip what they do not know, and one token
# would have many spellings.
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+\.([A-Za-z0-9_-]*)")


class Pending(NamedTuple):
    """The key is not there yet: await ``keys.key(kid)``, then verify again.

    Attributes:
        kid: The key that the token names.
        keys: Who can get it.
    """

    kid: str
    keys: RemoteKeys


class Verifier:
    """Tells who a token is of. Does no I/O: a key that is missing is `Pending`.

    Args:
        settings: The keys of connection and of subscription tokens.
        now: Unix seconds.
        remote: Who has the keys of each `jwks_public_endpoint`, by its URL.

    Raises:
        SettingsError: A key is none, or nobody has those of an endpoint.
    """

    def __init__(
        self,
        settings: Settings,
        now: Callable[[], float],
        remote: Mapping[str, RemoteKeys] | None = None,
    ) -> None:
        own = settings.subscription_token.has_keys
        self._now = now
        self._connection = _Trust(settings.token, "token", remote or {})
        self._subscription = (
            _Trust(settings.subscription_token, "subscription_token", remote or {})
            if own
            else self._connection
        )

    def connection(self, token: str) -> ConnectionClaims | Pending:
        """Return who may connect with *token*.

        Raises:
            TokenExpired: It is not valid now: 109 on connect, close 3005 on refresh.
            TokenInvalid: It never is: close 3500.
        """
        now, trust = self._now(), self._connection
        payload = trust.payload(token, now)
        if isinstance(payload, Pending):
            return payload
        return read_connection(
            payload, now, audience=trust.audience, issuer=trust.issuer
        )

    def subscription(self, token: str) -> SubscriptionClaims | Pending:
        """Return what may be subscribed to with *token*, and by whom.

        Raises:
            TokenExpired: It is not valid now: 109, push 2501 on sub_refresh.
            TokenInvalid: It never is: 103.
        """
        now, trust = self._now(), self._subscription
        payload = trust.payload(token, now)
        if isinstance(payload, Pending):
            return payload
        return read_subscription(
            payload, now, audience=trust.audience, issuer=trust.issuer
        )


class _Trust:
    """The keys of one kind of tokens."""

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
            raise SettingsError(f"{where}.jwks_public_endpoint: nobody asks it")

    def payload(self, token: str, now: float) -> bytes | Pending:
        header, signature = _split(token)
        keys = self._candidates(header, now)
        if isinstance(keys, Pending):
            return keys
        if not keys:
            raise TokenInvalid("there is no key for its algorithm")
        if not _canonical(signature):
            raise TokenInvalid("the signature is not in base64url")
        *others, last = keys
        for key in others:
            try:
                return key.payload(token, header.alg)
            except TokenInvalid:
                continue
        return last.payload(token, header.alg)

    def _candidates(self, header: _Header, now: float) -> list[Key] | Pending:
        keys: tuple[Key, ...] | None = self._keys
        if self._remote is not None and header.kid and header.alg in ASYMMETRIC:
            keys = self._remote.known(header.kid)
            if keys is None:
                return Pending(header.kid, self._remote)
        return [
            key
            for key in keys or ()
            if header.alg in key.algorithms and (key.until is None or now < key.until)
        ]


class _Header(msgspec.Struct):
    alg: str
    kid: str | None = None
    crit: Raw = Raw()


def _split(token: str) -> tuple[_Header, str]:
    """Return a token's header and its signature as text.

    Raises:
        TokenInvalid: It is no JWT (RFC 7519) that could be ours.
    """
    if len(token) > MAX_TOKEN:
        raise TokenInvalid(f"it is longer than {MAX_TOKEN} characters")
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise TokenInvalid("it is no JWT")
    first, signature = match.groups()
    try:
        # `check` bounds the depth, for whoever parses it after us.
        text = check(base64.urlsafe_b64decode(first + "=" * (-len(first) % 4)))
        header = msgspec.json.decode(text, type=_Header)
    except ValueError:
        raise TokenInvalid("its header is none") from None
    if bytes(header.crit):
        # RFC 7515, 4.1.11: what is critical must be understood.
        raise TokenInvalid("its header has critical parts")
    if header.kid is not None and len(header.kid) > MAX_KID:
        raise TokenInvalid(f"its kid is longer than {MAX_KID} characters")
    return header, signature


def _canonical(part: str) -> bool:
    """Tell whether *part* is what encoding its bytes would give.

    The last character of base64 has bits that no byte takes.
    """
    try:
        raw = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        return False
    return base64.urlsafe_b64encode(raw).decode().rstrip("=") == part

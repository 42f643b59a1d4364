"""Handlers of connects, subscribes and refreshes with a token or a ticket.

| a token that is | connect | refresh | subscribe | sub_refresh |
|---|---|---|---|---|
| valid | accepted | goes on | accepted | goes on |
| expired, or not valid yet | 109 | close 3005 | 109 | push 2501 |
| revoked, or a ticket that was used | as expired | | | |
| invalid | close 3500 | close 3500 | 103 | 103 |
| of another user | | close 3500 | close 3500 | close 3500 |
| for another channel or client | | | close 3500 | close 3500 |
| of a key that cannot be fetched | 100, temporary | the same | the same | the same |

A refresh raises 109; the session turns it into the close 3005 or the push 2501.

A revoked token counts as expired, because then an SDK asks its application for another
token, and stays disconnected if it gets none; after 3500 it would stay disconnected
although its user may connect.

Nothing is awaited between the check for revocation and the answer: a later revocation
finds a session that has the token's id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from service.auth.claims import ConnectionClaims, SubscriptionClaims
from service.auth.errors import KeysUnavailable, TokenExpired, TokenInvalid
from service.auth.tickets import Tickets
from service.auth.verifier import UnfetchedKey, Verifier
from service.core.errors import (
    INTERNAL,
    INVALID_TOKEN,
    NOT_AVAILABLE,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    CloseError,
    ReplyError,
    StoreError,
)
from service.core.hooks import (
    ConnectEvent,
    ConnectResult,
    Handlers,
    Raw,
    RefreshEvent,
    RefreshResult,
    SubRefreshEvent,
    SubRefreshResult,
    SubscribeEvent,
    SubscribeResult,
)
from service.core.model import TICKET_PREFIX, RawJson
from service.core.ports import Revocations
from service.settings import Settings

__all__ = ["Authenticator"]

Claims = TypeVar("Claims", ConnectionClaims, SubscriptionClaims)


class Authenticator:
    """Authenticates connections and subscriptions by tokens and tickets.

    Args:
        verifier: Verifies tokens.
        revocations: Tells which tokens are revoked.
        tickets: Redeems tickets; None if the service has no tickets.
    """

    def __init__(
        self,
        verifier: Verifier,
        revocations: Revocations,
        tickets: Tickets | None = None,
    ) -> None:
        self._verifier = verifier
        self._revocations = revocations
        self._tickets = tickets

    def handlers(self, own: Handlers, settings: Settings) -> Handlers:
        """Return *own*, completed by handlers of tokens where there are keys."""
        merged = own
        if self._tickets is not None:
            merged = replace(
                merged,
                connect_ticket=own.connect_ticket or self.connect,
                refresh=own.refresh or self.refresh_ticket,
            )
        if settings.token.has_keys:
            merged = replace(
                merged,
                connect_token=own.connect_token or self.connect,
                refresh=own.refresh or self.refresh,
            )
        if settings.subscription_keys.has_keys:
            merged = replace(
                merged,
                subscribe_token=own.subscribe_token or self.subscribe,
                sub_refresh=own.sub_refresh or self.sub_refresh,
            )
        return merged

    async def connect(self, event: ConnectEvent) -> ConnectResult:
        """Accept the connection of the user that the token or ticket names.

        Raises:
            ReplyError: 109 or 100.
            CloseError: 3500.
        """
        claims = await self._connection_claims(event)
        return ConnectResult(
            user=claims.user,
            info=_raw(claims.info),
            meta=_raw(claims.meta),
            expire_at=claims.expire_at,
            subs=claims.subscriptions,
            client_side_refresh=True,
            token_id=claims.token_id,
            issued_at=claims.issued_at,
        )

    async def refresh_ticket(self, event: RefreshEvent) -> RefreshResult:
        """Extend a connection by a ticket, where there are no keys of tokens.

        Raises:
            ReplyError: 108, 109 or 100.
            CloseError: 3500.
        """
        if not event.token.startswith(TICKET_PREFIX):
            raise ReplyError(NOT_AVAILABLE)
        return await self.refresh(event)

    async def refresh(self, event: RefreshEvent) -> RefreshResult:
        """Extend a connection by a new token or ticket of its user.

        Raises:
            ReplyError: 109 or 100.
            CloseError: 3500.
        """
        claims = await self._connection_claims(event)
        if claims.user != event.user:
            raise CloseError(INVALID_TOKEN, reason="it is of another user")
        return RefreshResult(
            expire_at=claims.expire_at,
            info=_raw(claims.info),
            token_id=claims.token_id,
            issued_at=claims.issued_at,
            channels=tuple(claims.subscriptions),
        )

    async def subscribe(self, event: SubscribeEvent) -> SubscribeResult:
        """Accept a subscription to the channel that its token names.

        Raises:
            ReplyError: 103, 109 or 100.
            CloseError: 3500.
        """
        claims = await self._subscription_claims(event)
        if claims.channel != event.channel:
            raise CloseError(INVALID_TOKEN, reason="it is for another channel")
        return SubscribeResult(
            info=_raw(claims.info),
            data=_raw(claims.data),
            expire_at=claims.expire_at,
            override=claims.override,
            client_side_refresh=True,
        )

    async def sub_refresh(self, event: SubRefreshEvent) -> SubRefreshResult:
        """Extend a subscription by a new token for its channel.

        Raises:
            ReplyError: 103, 109 or 100.
            CloseError: 3500.
        """
        claims = await self._subscription_claims(event)
        if claims.channel != (event.channel or claims.channel):
            raise CloseError(INVALID_TOKEN, reason="it is for another channel")
        return SubRefreshResult(
            channel=claims.channel,
            expire_at=claims.expire_at,
            info=_raw(claims.info),
        )

    async def _connection_claims(
        self, event: ConnectEvent | RefreshEvent
    ) -> ConnectionClaims:
        if self._tickets is not None and event.token.startswith(TICKET_PREFIX):
            verification = self._tickets.redeem(event.token, event.origin)
        else:
            verification = _verify(self._verifier.connection, event.token)
        try:
            return await self._authenticate(verification)
        except TokenInvalid as error:
            raise CloseError(INVALID_TOKEN, reason=error.reason) from None

    async def _subscription_claims(
        self, event: SubscribeEvent | SubRefreshEvent
    ) -> SubscriptionClaims:
        try:
            claims = await self._authenticate(
                _verify(self._verifier.subscription, event.token)
            )
        except TokenInvalid as error:
            raise ReplyError(PERMISSION_DENIED, reason=error.reason) from None
        if claims.user != event.user:
            raise CloseError(INVALID_TOKEN, reason="it is of another user")
        if claims.client not in ("", event.client):
            raise CloseError(INVALID_TOKEN, reason="it is for another connection")
        return claims

    async def _authenticate(self, verification: Awaitable[Claims]) -> Claims:
        try:
            claims = await verification
            user, token_id = claims.user, claims.token_id
            if self._revocations.is_revoked(user, token_id, claims.issued_at):
                raise TokenExpired("it was revoked")
        except TokenExpired as error:
            raise ReplyError(TOKEN_EXPIRED, reason=str(error)) from None
        except (KeysUnavailable, StoreError) as error:
            raise ReplyError(INTERNAL, reason=str(error)) from None
        return claims


async def _verify(verify: Callable[[str], Claims | UnfetchedKey], token: str) -> Claims:
    claims = verify(token)
    if isinstance(claims, UnfetchedKey):
        await claims.keys.key(claims.kid)
        claims = verify(token)
    if isinstance(claims, UnfetchedKey):
        raise KeysUnavailable("the key was withdrawn while it was fetched")
    return claims


def _raw(text: RawJson | None) -> Raw | None:
    return None if text is None else Raw(text)

"""`people.People` on rows: users whose sockets end at the gateway, and those here."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

import msgspec

from service.auth.revocations import Revocation
from service.connections.pending_connection import PendingConnection
from service.core.errors import (
    CONNECTION_EXPIRED,
    INTERNAL,
    Close,
    ErrorReply,
    ReplyError,
    Unsubscribe,
)
from service.core.model import Channel, ClientId, RawJson, UserId
from service.core.people import ConnectionStatus, People, ServerSubscribe
from service.core.sessions import StoredSession
from service.gateway.context import GatewayContext
from service.gateway.invocation import Invocation
from service.session.record import SessionRecord
from service.session.session import Session

__all__ = ["GatewayPeople", "resumed"]


def resumed(
    context: GatewayContext, client: ClientId, stored: StoredSession
) -> tuple[Invocation, SessionRecord]:
    """Return an invocation for a session as stored, and its record."""
    record = msgspec.json.decode(stored.record, type=SessionRecord)
    pending = PendingConnection(record.address, record.origin, refused=context.refused)
    invocation = Invocation(context, client, pending)
    invocation.restore(stored, record)
    return invocation, record


class GatewayPeople:
    """The connections of users at the gateway.

    A connection without a user is found by its id alone.

    Args:
        context: What all invocations share.
        local: Those of this process, on which everything is done too; None without.
    """

    def __init__(self, context: GatewayContext, local: People | None = None) -> None:
        self._context = context
        self._local = local

    async def _clients(self, user: UserId, client: str) -> list[ClientId]:
        found = await self._context.sessions.of_user(user)
        if not client:
            return found
        if not user:
            return [ClientId(client)]
        return [each for each in found if each == client]

    async def _act(
        self, client: ClientId, user: UserId | None, act: Callable[[Session], object]
    ) -> bool:
        """Let a session do something; False if it is not that user's any more.

        With None as *user* it may be anybody's.
        """
        stored = await self._context.sessions.load(client)
        if stored is None:
            return False
        invocation, record = resumed(self._context, client, stored)
        if user is not None and record.user != user:
            return False
        await invocation.run(act)
        return True

    async def look_after(self, client: ClientId) -> bool:
        """Do what is due for a connection: it may have expired, or grown old.

        Returns:
            False if its client is not connected.

        Raises:
            StoreError: It could not be read.
        """
        return await self._act(client, None, lambda session: None)

    async def connections(self, user: UserId) -> list[ConnectionStatus]:
        """Return a user's connections.

        Raises:
            StoreError: They could not be read.
        """
        found = [] if self._local is None else await self._local.connections(user)
        now = self._context.clock.wall() * 1000
        for client in await self._clients(user, ""):
            stored = await self._context.sessions.load(client)
            if stored is None:
                continue
            record = msgspec.json.decode(stored.record, type=SessionRecord)
            silent = max(0.0, now - record.active_at) / 1000.0
            found.append(
                ConnectionStatus(
                    client=client,
                    protocol="json",
                    channels=tuple(stored.channels),
                    level="healthy",  # the gateway says who is gone
                    pending_pings=0,
                    silent=silent,
                    idle=silent,
                    queued_bytes=0,
                    messages_sent=0,
                    in_flight=False,
                )
            )
        return found

    async def disconnect(
        self,
        user: UserId,
        close: Close,
        *,
        client: str = "",
        stay: Collection[str] = (),
        confirmed: bool = False,
    ) -> int:
        """Close a user's connections but those in *stay*; see the port.

        Raises:
            StoreError: Some may still be open.
        """
        count = 0
        if self._local is not None:
            count = await self._local.disconnect(
                user, close, client=client, stay=stay, confirmed=confirmed
            )
        for each in await self._clients(user, client):
            if each in stay:
                count += 1
            else:
                end = partial(Session.disconnect, close=close)
                count += await self._act(each, user, end)
        return count

    async def expire(self, user: UserId, *, client: str = "") -> None:
        """Close a user's connections because they have expired.

        Raises:
            StoreError: Some may still be open.
        """
        if self._local is not None:
            await self._local.expire(user, client=client)
        end = partial(Session.disconnect, close=CONNECTION_EXPIRED)
        for each in await self._clients(user, client):
            await self._act(each, user, end)

    async def refresh(
        self, user: UserId, expire_at: float, info: RawJson | None, *, client: str = ""
    ) -> None:
        """Set when they expire, and their information for others.

        Raises:
            StoreError: Some may not be refreshed.
        """
        if self._local is not None:
            await self._local.refresh(user, expire_at, info, client=client)
        now = self._context.clock.now()
        for each in await self._clients(user, client):
            await self._act(each, user, lambda s: s.refresh(expire_at, info, now))

    async def subscribe(self, request: ServerSubscribe) -> None:
        """Subscribe them; see the port.

        Raises:
            ReplyError: One could not be subscribed.
            StoreError: Some may not be subscribed.
        """
        if self._local is not None:
            await self._local.subscribe(request)
        now = self._context.clock.now()
        for each in await self._clients(request.user, request.client):
            errors: list[ErrorReply | None] = []

            def subscribe(
                session: Session, errors: list[ErrorReply | None] = errors
            ) -> None:
                if not session.subscribe(
                    request.channel,
                    request.since,
                    end=session.expiry.unsubscribe_at(request.expire_at, now),
                    info=request.info,
                    data=request.data,
                    override=request.override,
                    done=errors.append,
                ):
                    errors.append(None)  # it has ended

            if not await self._act(each, request.user, subscribe):
                continue
            error = errors[0] if errors else INTERNAL
            if error is not None:
                raise ReplyError(error)

    async def unsubscribe(
        self, user: UserId, channel: Channel, code: Unsubscribe, *, client: str = ""
    ) -> None:
        """Take them out of *channel*.

        Raises:
            StoreError: Some may still be in it.
        """
        if self._local is not None:
            await self._local.unsubscribe(user, channel, code, client=client)
        for each in await self._clients(user, client):
            await self._act(each, user, lambda s: s.unsubscribe(channel, code))

    async def revoke(self, user: UserId, token_id: str, before: float) -> None:
        """Close the connections whose token was revoked.

        Those of one token are closed by their next frame, or the next sweep: only the
        connections of a user can be found.

        Raises:
            StoreError: Some may still be open.
        """
        if self._local is not None:
            await self._local.revoke(user, token_id, before)
        revoked = Revocation(token_id, user, before)

        def close(session: Session) -> None:
            token = session.token_id, session.issued_at
            if revoked.covers(session.identity.user, *token):
                session.disconnect(CONNECTION_EXPIRED)

        if not token_id:
            for each in await self._clients(user, ""):
                await self._act(each, user, close)

"""`people.People` on the connections of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from service.auth.revocations import Revocation
from service.connections.grace_period import GracePeriod
from service.connections.registry import Connection, Record, Registry
from service.connections.streams import Streams
from service.core.errors import (
    CONNECTION_EXPIRED,
    INTERNAL,
    Close,
    ErrorReply,
    ReplyError,
    Unsubscribe,
)
from service.core.model import (
    Channel,
    RawJson,
    UserId,
)
from service.core.people import ConnectionStatus, Rtt, ServerSubscribe
from service.core.ports import Clock

__all__ = ["LocalPeople"]

TIMEOUT = 4.0  # s that a call waits for its subscriptions; then it fails with 100


class LocalPeople:
    """The connections of one process, each acted on in the turn of the call.

    Args:
        registry: Holds them.
        grace_period: Keeps the places of lost ones.
        clock: Tells how long they are silent.
        streams: Streamed answers, which end as connections do.
    """

    def __init__(
        self,
        registry: Registry,
        grace_period: GracePeriod,
        clock: Clock,
        streams: Streams,
    ) -> None:
        self._streams = streams
        self._registry = registry
        self._grace_period = grace_period
        self._clock = clock

    async def connections(self, user: UserId) -> list[ConnectionStatus]:
        """Return a user's connections."""
        now = self._clock.now()
        found = []
        for connection in self._registry.of_user(user):
            record = self._registry.find(connection.identity.client)
            assert record is not None  # it has a slot
            found.append(_status_of(record, now))
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

        Connections that wait for a slot are closed too: they would take one that is
        freed here. Lost connections leave their channels now.
        """
        found = self._registry.of_user(user, client)
        if not client:
            found += self._registry.waiting(user)
        for connection in found:
            if connection.identity.client not in stay:
                connection.disconnect(close)
        ended = 0
        if not client:
            if user:
                self._grace_period.end(user)
            ended = len(self._streams.of_user(user))
            self._streams.end(user)
        return len(found) + ended

    async def expire(self, user: UserId, *, client: str = "") -> None:
        """Close a user's connections because they have expired."""
        for connection in self._registry.of_user(user, client):
            connection.disconnect(CONNECTION_EXPIRED)

    async def refresh(
        self, user: UserId, expire_at: float, info: RawJson | None, *, client: str = ""
    ) -> None:
        """Set when they expire, and their information for others."""
        for connection in self._registry.of_user(user, client):
            connection.refresh(expire_at, info)
        if not client:
            wall, now = self._clock.wall(), self._clock.now()
            end = now + max(0.0, expire_at - wall) if expire_at else float("inf")
            self._streams.refresh(user, end)

    async def subscribe(self, request: ServerSubscribe) -> None:
        """Subscribe them; returns when every one is subscribed or has failed.

        Raises:
            ReplyError: One has failed.
        """
        joins: list[_Join] = []
        for connection in self._registry.of_user(request.user, request.client):
            join = _Join(connection)
            try:
                if connection.subscribe(
                    request.channel,
                    request.since,
                    expire_at=request.expire_at,
                    info=request.info,
                    data=request.data,
                    override=request.override,
                    done=join.done,
                ):
                    joins.append(join)
            except ReplyError as refusal:
                join.done(refusal.error)
                joins.append(join)
        await _all(joins)
        connected = self._registry.of_user(request.user, request.client)
        for join in joins:
            error = join.error(connected)
            if error is not None:
                raise ReplyError(error)

    async def unsubscribe(
        self, user: UserId, channel: Channel, code: Unsubscribe, *, client: str = ""
    ) -> None:
        """Take them out of *channel*."""
        for connection in self._registry.of_user(user, client):
            connection.unsubscribe(channel, code)
        if not client:
            self._streams.end(user, channel)

    async def revoke(self, user: UserId, token_id: str, before: float) -> None:
        """Close the connections whose token was revoked."""
        revoked = Revocation(token_id, user, before)
        if token_id:
            found = list(self._registry)
        else:
            # Those that wait for a slot too: their token is not checked again.
            found = self._registry.of_user(user) + self._registry.waiting(user)
        for connection in found:
            of = connection.identity.user
            if revoked.covers(of, connection.token_id, connection.issued_at):
                connection.disconnect(CONNECTION_EXPIRED)
        self._streams.revoke(revoked)


def _status_of(record: Record, now: float) -> ConnectionStatus:
    connection = record.connection
    liveness, rtt = connection.keepalive, connection.keepalive.rtt
    return ConnectionStatus(
        client=connection.identity.client,
        protocol=connection.protocol,
        channels=tuple(connection.channels),
        level=liveness.level.value,
        pending_pings=liveness.pending,
        silent=now - record.heard,
        idle=now - record.active,
        queued_bytes=connection.queued_bytes,
        messages_sent=connection.messages_sent,
        in_flight=connection.in_flight,
        rtt=None if rtt is None else Rtt.of(rtt),
    )


class _Join:
    """A subscription in progress, of one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.outcome: asyncio.Future[ErrorReply | None] = (
            asyncio.get_running_loop().create_future()
        )

    def done(self, error: ErrorReply | None) -> None:
        """Set the outcome."""
        if not self.outcome.done():
            self.outcome.set_result(error)

    def error(self, connected: list[Connection]) -> ErrorReply | None:
        """Return the error; none if the connection has ended meanwhile."""
        if self.outcome.done():
            return self.outcome.result()
        return INTERNAL if self._connection in connected else None


async def _all(joins: list[_Join]) -> None:
    # Usually all are done already: their positions are in memory.
    waiting = [join.outcome for join in joins if not join.outcome.done()]
    if waiting:
        await asyncio.wait(waiting, timeout=TIMEOUT)

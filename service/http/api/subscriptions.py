"""``/api/subscribe`` and ``/api/unsubscribe``: the channels of live connections."""

from __future__ import annotations

import asyncio

import msgspec
from msgspec import UNSET, Raw, UnsetType

from service.connections.registry import Connection
from service.core.errors import (
    INTERNAL,
    UNSUBSCRIBE_SERVER,
    ErrorReply,
    ReplyError,
)
from service.core.json_fields import (
    Base64,
    Override,
    optional_payload_of,
    override_of,
)
from service.core.model import Channel, Position
from service.http.api.connections import connections_of
from service.http.api.context import (
    ApiContext,
    ChannelName,
    Integer,
    Since,
    User,
)

__all__ = ["SubscribeRequest", "UnsubscribeRequest", "subscribe", "unsubscribe"]

TIMEOUT = 4.0  # s that a call waits for its subscriptions; then it fails with 100


class SubscribeRequest(msgspec.Struct, kw_only=True):
    """Subscribe a user's live connections; *user* "" stands for the anonymous ones.

    Attributes:
        client: Only this connection.
        session: Only this session; there are no sessions, so none is found.
        info: Information for others in the channel.
        data: Sent to the client with the subscription.
        recover_since: A position; the publications after it are sent.
        expire_at: Unix seconds; a connection that is still subscribed 25 s later is
            closed with 3006 and reconnects. 0 or absent for never.
        override: Options that differ from those of the namespace.
    """

    user: User
    channel: ChannelName
    client: str | None = None
    session: str | None = None
    info: Raw | UnsetType = UNSET
    b64info: Base64 | None = None
    data: Raw | UnsetType = UNSET
    b64data: Base64 | None = None
    recover_since: Since | None = None
    expire_at: Integer | None = None
    override: Override | None = None


class UnsubscribeRequest(msgspec.Struct, kw_only=True):
    """Unsubscribe a user's live connections from a channel."""

    user: User
    channel: ChannelName
    client: str | None = None
    session: str | None = None


async def subscribe(context: ApiContext, request: SubscribeRequest) -> str:
    """Subscribe; answer when every connection is subscribed or has failed."""
    rules = context.rules(request.channel)
    rules = rules.changed(override_of(request.override))
    limit = context.settings.publication_size
    info = optional_payload_of(request.info, request.b64info, limit)
    data = optional_payload_of(request.data, request.b64data, limit)
    since = None
    if request.recover_since is not None:
        position = request.recover_since
        since = Position(position.offset or 0, position.epoch or "")
    joins: list[_Join] = []
    for connection in connections_of(context, request):
        join = _Join(connection)
        try:
            if connection.subscribe(
                Channel(request.channel),
                since,
                expire_at=request.expire_at or 0,
                info=info,
                data=data,
                rules=rules,
                done=join.done,
            ):
                joins.append(join)
        except ReplyError as refusal:
            join.done(refusal.error)
            joins.append(join)
    await _all(joins)
    connected = connections_of(context, request)
    for join in joins:
        error = join.error(connected)
        if error is not None:
            raise ReplyError(error)
    return "{}"


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


async def unsubscribe(context: ApiContext, request: UnsubscribeRequest) -> str:
    """Unsubscribe with push 2000; clients do not subscribe again by themselves."""
    context.rules(request.channel)
    for connection in connections_of(context, request):
        connection.unsubscribe(Channel(request.channel), UNSUBSCRIBE_SERVER)
    return "{}"

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
)

__all__ = ["SubscribeRequest", "UnsubscribeRequest", "subscribe", "unsubscribe"]

JOINING = 4.0  # seconds; as long as the store may take, and no answer is 100


class SubscribeRequest(msgspec.Struct, kw_only=True):
    """Subscribe a user's live connections; *user* "" is the anonymous ones.

    Attributes:
        client: Only this connection.
        session: Only this session; there are none, so it finds nobody.
        info: Shown to others in the channel.
        data: Goes to the client with the subscription.
        recover_since: Send the publications since.
        expire_at: Unix seconds; a connection that is still subscribed 25 s later is
            closed with 3006 and comes back. 0 or absent for never.
        override: Options of the namespace that are different.
    """

    user: str
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
    """Take a user's live connections out of a channel."""

    user: str
    channel: ChannelName
    client: str | None = None
    session: str | None = None


async def subscribe(context: ApiContext, request: SubscribeRequest) -> str:
    """Subscribe; the answer comes when every connection is, or cannot be."""
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
    """A subscription of one connection, under way."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.outcome: asyncio.Future[ErrorReply | None] = (
            asyncio.get_running_loop().create_future()
        )

    def done(self, error: ErrorReply | None) -> None:
        """Take the outcome."""
        if not self.outcome.done():
            self.outcome.set_result(error)

    def error(self, connected: list[Connection]) -> ErrorReply | None:
        """Return why it failed; one whose connection has ended has not."""
        if self.outcome.done():
            return self.outcome.result()
        return INTERNAL if self._connection in connected else None


async def _all(joins: list[_Join]) -> None:
    # As a rule all are done: where they have to start is in memory.
    waiting = [join.outcome for join in joins if not join.outcome.done()]
    if waiting:
        await asyncio.wait(waiting, timeout=JOINING)


async def unsubscribe(context: ApiContext, request: UnsubscribeRequest) -> str:
    """Unsubscribe with push 2000; the clients do not come back by themselves."""
    context.rules(request.channel)
    for connection in connections_of(context, request):
        connection.unsubscribe(Channel(request.channel), UNSUBSCRIBE_SERVER)
    return "{}"

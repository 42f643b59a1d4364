"""``/api/subscribe`` and ``/api/unsubscribe``: the channels of live connections."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

from service.core.errors import UNSUBSCRIBE_SERVER
from service.core.json_fields import (
    Base64,
    Override,
    optional_payload_of,
    override_of,
)
from service.core.model import Channel, Position, UserId
from service.core.people import ServerSubscribe
from service.http.api.context import (
    ApiContext,
    ChannelName,
    Integer,
    Since,
    User,
)

__all__ = ["SubscribeRequest", "UnsubscribeRequest", "subscribe", "unsubscribe"]


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
    context.rules(request.channel)
    override = override_of(request.override)
    limit = context.settings.publication_size
    info = optional_payload_of(request.info, request.b64info, limit)
    data = optional_payload_of(request.data, request.b64data, limit)
    since = None
    if request.recover_since is not None:
        position = request.recover_since
        since = Position(position.offset or 0, position.epoch or "")
    if request.session:
        return "{}"  # no connection has a session id
    await context.runtime.people.subscribe(
        ServerSubscribe(
            user=UserId(request.user),
            channel=Channel(request.channel),
            client=request.client or "",
            since=since,
            expire_at=request.expire_at or 0,
            info=info,
            data=data,
            override=override,
        )
    )
    return "{}"


async def unsubscribe(context: ApiContext, request: UnsubscribeRequest) -> str:
    """Unsubscribe with push 2000; clients do not subscribe again by themselves."""
    context.rules(request.channel)
    if request.session:
        return "{}"
    await context.runtime.people.unsubscribe(
        UserId(request.user),
        Channel(request.channel),
        UNSUBSCRIBE_SERVER,
        client=request.client or "",
    )
    return "{}"

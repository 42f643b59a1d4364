"""``/api/presence`` and ``/api/presence_stats``."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from service.core.errors import NOT_AVAILABLE, ReplyError
from service.core.model import Channel, SubscriberInfo
from service.http.api.context import ApiContext, ChannelName, Integer
from service.protocol import replies

__all__ = [
    "ClientObject",
    "PresenceRequest",
    "PresenceResult",
    "PresenceStatsResult",
    "presence",
    "presence_stats",
]


class PresenceRequest(msgspec.Struct, kw_only=True):
    """Read the subscribers of a channel."""

    channel: ChannelName


class ClientObject(msgspec.Struct):
    """A connection, as other clients see it."""

    user: str
    client: str
    conn_info: Any | UnsetType = UNSET
    chan_info: Any | UnsetType = UNSET


class PresenceResult(msgspec.Struct):
    """The subscribers by client id."""

    presence: dict[str, ClientObject]


class PresenceStatsResult(msgspec.Struct):
    """The number of subscribers; anonymous users count as one user."""

    num_clients: Integer
    num_users: Integer


async def presence(context: ApiContext, request: PresenceRequest) -> str:
    """Return the subscribers."""
    present = await _present(context, request)
    return replies.presence_result([(one.client, one.info) for one in present])


async def presence_stats(context: ApiContext, request: PresenceRequest) -> str:
    """Return the number of subscribers."""
    present = await _present(context, request)
    return replies.presence_stats_result(
        len(present), len({one.user for one in present})
    )


async def _present(
    context: ApiContext, request: PresenceRequest
) -> list[SubscriberInfo]:
    if not context.rules(request.channel).options.presence:
        raise ReplyError(NOT_AVAILABLE)
    return await context.present(Channel(request.channel))

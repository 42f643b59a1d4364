"""``/api/history`` and ``/api/history_remove``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from _speedups import quote
from service.core.errors import (
    BAD_REQUEST,
    NOT_AVAILABLE,
    UNRECOVERABLE_POSITION,
    ReplyError,
)
from service.core.model import Channel
from service.core.ports import History
from service.core.position import take_piece
from service.http.api.context import ApiContext, ChannelName, Integer, Since
from service.http.api.presence import ClientObject
from service.protocol import replies

__all__ = [
    "HistoryRemoveRequest",
    "HistoryRequest",
    "HistoryResult",
    "history",
    "history_remove",
]

Limit = Annotated[
    int,
    Meta(
        ge=-1,
        le=2**53 - 1,
        description="At most so many; 0 for the position alone, -1 for all.",
    ),
]


class HistoryRequest(msgspec.Struct, kw_only=True):
    """Read a channel's publications."""

    channel: ChannelName
    limit: Limit | None = None
    since: Since | None = None
    reverse: bool | None = None


class HistoryRemoveRequest(msgspec.Struct, kw_only=True):
    """Delete a channel's publications; its offset and epoch stay."""

    channel: ChannelName


class PublicationObject(msgspec.Struct):
    """A publication; ``info`` describes the client that published it."""

    data: Any
    offset: Integer
    info: ClientObject | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET


class HistoryResult(msgspec.Struct):
    """Publications, and the position of the newest."""

    publications: list[PublicationObject]
    offset: Integer
    epoch: str


async def history(context: ApiContext, request: HistoryRequest) -> str:
    """Return publications and the position of the newest."""
    kept = _kept(context, request.channel)
    since, reverse = request.since, bool(request.reverse)
    offset = None if since is None else since.offset or 0
    if reverse and offset == 0:
        raise ReplyError(BAD_REQUEST, reason="nothing is before the offset 0 of since")
    page = await context.read(
        Channel(request.channel), kept, offset, request.limit or 0, reverse=reverse
    )
    if since is not None and since.epoch and since.epoch != page.top.epoch:
        raise ReplyError(UNRECOVERABLE_POSITION)
    publications = take_piece(page.publications, context.settings.history_size)
    bodies = ",".join([replies.publication_body(item) for item in publications])
    return (
        f'{{"publications":[{bodies}],"offset":{page.top.offset},'
        f'"epoch":{quote(page.top.epoch)}}}'
    )


async def history_remove(context: ApiContext, request: HistoryRemoveRequest) -> str:
    """Delete a channel's publications."""
    _kept(context, request.channel)
    channel = Channel(request.channel)
    await context.runtime.store.remove(channel)
    await context.runtime.threads.remove(channel)
    return "{}"


def _kept(context: ApiContext, channel: str) -> History:
    kept = context.rules(channel).history
    if kept.size == 0:
        raise ReplyError(NOT_AVAILABLE)
    return kept

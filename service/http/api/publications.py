"""``/api/publish`` and ``/api/broadcast``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from copy import copy
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from _speedups import quote
from service.core.errors import BAD_REQUEST, ReplyError, StoreError
from service.core.json_fields import Base64, payload_of
from service.core.model import Appended, Channel, Draft, RawJson, size_of
from service.core.ports import NO_HISTORY
from service.http.api.context import (
    ApiContext,
    ChannelName,
    ErrorObject,
    Integer,
    Payload,
    store_error,
)
from service.protocol.replies import error_body

__all__ = [
    "PORTION",
    "BroadcastRequest",
    "BroadcastResult",
    "PublishRequest",
    "PublishResult",
    "append",
    "broadcast",
    "draft_of",
    "publish",
]

KEY_LENGTH = 1024  # characters of an idempotency key or a version epoch

Key = Annotated[str, Meta(max_length=KEY_LENGTH)]

PORTION = 32
"""Channels of a broadcast in a turn of the event loop, as of commands."""

_IN_FLIGHT = 4 * 1024 * 1024  # bytes of a broadcast that wait for the store at once


class _Publication(msgspec.Struct, kw_only=True):
    """A payload and its options.

    Attributes:
        delta: Subscriptions that take deltas are sent one, where it is shorter.
    """

    data: Payload | UnsetType = UNSET
    b64data: Base64 | None = None
    skip_history: bool | None = None
    tags: dict[str, str] | None = None
    idempotency_key: Key | None = None
    delta: bool | None = None
    version: Integer | None = None
    version_epoch: Key | None = None


class PublishRequest(_Publication, kw_only=True):
    """Publish to one channel; ``data`` or ``b64data`` is required."""

    channel: ChannelName


class BroadcastRequest(_Publication, kw_only=True):
    """Publish the same to several channels."""

    channels: Annotated[list[str], Meta(min_length=1)]


class PublishResult(msgspec.Struct):
    """The publication's position; empty without history."""

    offset: int | UnsetType = UNSET
    epoch: str | UnsetType = UNSET


class PublishReply(msgspec.Struct):
    """The outcome in one channel."""

    result: PublishResult | UnsetType = UNSET
    error: ErrorObject | UnsetType = UNSET


class BroadcastResult(msgspec.Struct):
    """The outcomes, in the order of the channels."""

    responses: list[PublishReply]


async def publish(context: ApiContext, request: PublishRequest) -> str:
    """Publish to one channel."""
    return await _one(context, request.channel, _draft(context, request), request)


async def broadcast(context: ApiContext, request: BroadcastRequest) -> str:
    """Publish the same to several channels."""
    if len(request.channels) > context.settings.batch_size:
        raise ReplyError(BAD_REQUEST)
    draft = _draft(context, request)

    async def one(channel: str) -> str:
        try:
            return f'{{"result":{await _one(context, channel, draft, request)}}}'
        except ReplyError as refusal:
            return f'{{"error":{error_body(refusal.error)}}}'
        except StoreError as error:
            return f'{{"error":{error_body(store_error(error))}}}'

    # The store's queue refuses a broadcast that is larger than the queue, at each
    # attempt; so a large one is handed over in pieces.
    together = max(1, _IN_FLIGHT // (len(draft.data) + 1024))
    responses: list[str] = []
    for start in range(0, len(request.channels), together):
        piece = request.channels[start : start + together]
        waiting: list[asyncio.Task[str]] = []
        async with asyncio.TaskGroup() as tasks:
            for channel in piece:
                waiting.append(tasks.create_task(one(channel)))
                if len(waiting) % PORTION == 0:
                    await asyncio.sleep(0)  # nobody waits for more than a portion
        responses += [task.result() for task in waiting]
    return f'{{"responses":[{",".join(responses)}]}}'


async def _one(
    context: ApiContext, channel: str, draft: Draft, request: _Publication
) -> str:
    skip = bool(request.skip_history)
    appended = await append(context, channel, draft, skip_history=skip)
    offset, epoch = appended.position
    return f'{{"offset":{offset},"epoch":{quote(epoch)}}}' if offset else "{}"


def append(
    context: ApiContext, channel: str, draft: Draft, *, skip_history: bool
) -> asyncio.Future[Appended]:
    """Hand a publication to the store now; `ApiContext.publish` says what comes of it.

    Raises:
        ReplyError: 102 or 107, from the name; 103 if the key does not allow it.
    """
    rules = context.publish_rules(channel)
    history = NO_HISTORY if skip_history else rules.history
    if rules.options.delta_publish and not draft.delta:
        draft = copy(draft)  # the same one may go to channels of other namespaces
        draft.delta = True
    return context.publish(Channel(channel), draft, history)


def _draft(context: ApiContext, request: _Publication) -> Draft:
    limit = context.settings.publication_size
    data = payload_of(request.data, request.b64data, limit)
    if data is None:
        raise ReplyError(BAD_REQUEST)
    return draft_of(
        context,
        data,
        request.tags,
        idempotency_key=request.idempotency_key or "",
        version=request.version or 0,
        version_epoch=request.version_epoch or "",
        delta=bool(request.delta),
    )


def draft_of(
    context: ApiContext, data: RawJson, tags: Mapping[str, str] | None, **options: Any
) -> Draft:
    """Return a draft of a publication; *options* are those of `Draft`.

    Raises:
        ReplyError: 107 if data and tags together, a key or a version epoch are too
            large.
    """
    labels = None
    if tags:
        parts = [f"{quote(name)}:{quote(value)}" for name, value in tags.items()]
        labels = RawJson(f"{{{','.join(parts)}}}")
    if size_of(data) + size_of(labels or "") > context.settings.publication_size:
        raise ReplyError(BAD_REQUEST)
    draft = Draft(data, tags=labels, **options)
    # The schema bounds them in the server API, not in calls from the same process.
    if max(len(draft.idempotency_key), len(draft.version_epoch)) > KEY_LENGTH:
        raise ReplyError(BAD_REQUEST)
    return draft

"""``/api/publish`` and ``/api/broadcast``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from _speedups import quote
from service.core.errors import BAD_REQUEST, ErrorReply, ReplyError, StoreError
from service.core.json_fields import Base64, payload_of
from service.core.model import Appended, Channel, Draft, Position, RawJson, size_of
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
    "SendResult",
    "append",
    "broadcast",
    "draft_of",
    "publish",
    "send",
]

KEY_LENGTH = 1024  # characters of an idempotency key or a version epoch

Key = Annotated[str, Meta(max_length=KEY_LENGTH)]

PORTION = 32
"""Channels of a broadcast in a turn of the event loop, as of commands."""

_NO_POSITION = Position(0, "")
_IN_FLIGHT = 4 * 1024 * 1024  # bytes of a broadcast that wait for the store at once


class _Publication(msgspec.Struct, kw_only=True):
    """A payload and its options.

    Attributes:
        delta: Subscriptions that take deltas are sent one, where it is shorter.
        urgent: It does not wait for the batch window of its channel.
    """

    data: Payload | UnsetType = UNSET
    b64data: Base64 | None = None
    skip_history: bool | None = None
    tags: dict[str, str] | None = None
    idempotency_key: Key | None = None
    delta: bool | None = None
    urgent: bool | None = None
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


class ChannelFailure(msgspec.Struct):
    """The channel that a broadcast did not reach, and why.

    Attributes:
        code: That of the error in ``responses``.
        reason: The cause in words, for people and logs.
    """

    channel: str
    code: int
    reason: str


class BroadcastResult(msgspec.Struct):
    """The outcomes, in the order of the channels, and their sums.

    Attributes:
        delivered: Count of the channels whose present subscribers are given it.
        stored: Count of these that keep it in their history.
        failed: All others.
    """

    responses: list[PublishReply]
    delivered: int
    stored: int
    failed: list[ChannelFailure]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a broadcast in one channel.

    Attributes:
        channel: The channel.
        position: The publication's; offset 0 when it is not stored.
        error: Why it was not published; None if it was. If it is temporary, a repeat
            with the same idempotency key may help.
        reason: The cause of the error in words, for people and logs; "" without one.
    """

    channel: str
    position: Position = _NO_POSITION
    error: ErrorReply | None = None
    reason: str = ""

    @property
    def state(self) -> Literal["delivered", "stored", "failed"]:
        """What became of it.

        ``delivered``: given to the present subscribers; ``stored``: also kept in the
        history; ``failed``: neither, or nobody knows.
        """
        if self.error is not None:
            return "failed"
        return "stored" if self.position.offset else "delivered"


@dataclass(frozen=True, slots=True)
class SendResult:
    """The outcome of a broadcast, which may succeed in some channels alone.

    Attributes:
        outcomes: One for each channel, in their order.
    """

    outcomes: Sequence[Outcome]

    @property
    def delivered(self) -> int:
        """Count of the channels whose present subscribers are given it."""
        return sum(outcome.error is None for outcome in self.outcomes)

    @property
    def stored(self) -> int:
        """Count of the channels that keep it in their history."""
        return sum(outcome.state == "stored" for outcome in self.outcomes)

    @property
    def failed(self) -> list[Outcome]:
        """The outcomes of the channels that it was not published to."""
        return [outcome for outcome in self.outcomes if outcome.error is not None]


async def publish(context: ApiContext, request: PublishRequest) -> str:
    """Publish to one channel."""
    draft = _draft(context, request)
    skip = bool(request.skip_history)
    appended = append(context, request.channel, draft, skip_history=skip)
    return _position((await appended).position)


async def broadcast(context: ApiContext, request: BroadcastRequest) -> str:
    """Publish the same to several channels."""
    draft = _draft(context, request)
    skip = bool(request.skip_history)
    sent = await send(context, request.channels, draft, skip_history=skip)
    responses = ",".join(map(_response, sent.outcomes))
    failed = ",".join(map(_failure, sent.failed))
    return (
        f'{{"responses":[{responses}],"delivered":{sent.delivered},'
        f'"stored":{sent.stored},"failed":[{failed}]}}'
    )


async def send(
    context: ApiContext, channels: Sequence[str], draft: Draft, *, skip_history: bool
) -> SendResult:
    """Publish the same to several channels, and wait for all outcomes.

    Raises:
        ReplyError: 107 for too many channels.
    """
    if len(channels) > context.settings.batch_size:
        raise ReplyError(BAD_REQUEST, reason="more channels than api.batch_size")

    async def one(channel: str) -> Outcome:
        try:
            appended = append(context, channel, draft, skip_history=skip_history)
            return Outcome(channel, (await appended).position)
        except ReplyError as refusal:
            return Outcome(channel, error=refusal.error, reason=refusal.reason)
        except StoreError as error:
            return Outcome(channel, error=store_error(error), reason=str(error))

    # The store's queue refuses a broadcast that is larger than the queue, at each
    # attempt; so a large one is handed over in pieces.
    together = max(1, _IN_FLIGHT // (len(draft.data) + 1024))
    outcomes: list[Outcome] = []
    for start in range(0, len(channels), together):
        piece = channels[start : start + together]
        waiting: list[asyncio.Task[Outcome]] = []
        async with asyncio.TaskGroup() as tasks:
            for channel in piece:
                waiting.append(tasks.create_task(one(channel)))
                if len(waiting) % PORTION == 0:
                    await asyncio.sleep(0)  # nobody waits for more than a portion
        outcomes += [task.result() for task in waiting]
    return SendResult(outcomes)


def _response(outcome: Outcome) -> str:
    if outcome.error is not None:
        return f'{{"error":{error_body(outcome.error)}}}'
    return f'{{"result":{_position(outcome.position)}}}'


def _failure(outcome: Outcome) -> str:
    assert outcome.error is not None
    return (
        f'{{"channel":{quote(outcome.channel)},"code":{outcome.error.code},'
        f'"reason":{quote(outcome.reason)}}}'
    )


def _position(position: Position) -> str:
    offset, epoch = position
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
        words = "data is missing, or b64data is not JSON in base64 within its limit"
        raise ReplyError(BAD_REQUEST, reason=words)
    return draft_of(
        context,
        data,
        request.tags,
        idempotency_key=request.idempotency_key or "",
        version=request.version or 0,
        version_epoch=request.version_epoch or "",
        delta=bool(request.delta),
        urgent=bool(request.urgent),
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
        raise ReplyError(BAD_REQUEST, reason="it is over api.publication_size")
    draft = Draft(data, tags=labels, **options)
    # The schema bounds them in the server API, not in calls from the same process.
    if max(len(draft.idempotency_key), len(draft.version_epoch)) > KEY_LENGTH:
        words = f"idempotency_key or version_epoch is over {KEY_LENGTH} characters"
        raise ReplyError(BAD_REQUEST, reason=words)
    return draft

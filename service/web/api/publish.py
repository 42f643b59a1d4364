"""``/api/publish`` and ``/api/broadcast``."""

from __future__ import annotations

import asyncio
from typing import Any

from service.errors import BAD_REQUEST, INTERNAL, ReplyError, StoreError
from service.model import Channel, Draft, RawJson
from service.ports import NO_HISTORY
from service.protocol import json as wire
from service.web.api.call import ApiContext, ApiMethod, channel_of, error_body, tags_of

__all__ = ["Broadcast", "Publish"]


class Publish(ApiMethod):
    """Publish to one channel."""

    async def call(self, fields: dict[str, Any]) -> str:
        """Return the publication's position."""
        return await _publish(
            self._context, channel_of(fields), draft_of(self._context, fields), fields
        )


class Broadcast(ApiMethod):
    """Publish the same to several channels."""

    async def call(self, fields: dict[str, Any]) -> str:
        """Return one response a channel, in the order asked for."""
        channels = fields.get("channels")
        if type(channels) is not list or not channels:
            raise ReplyError(BAD_REQUEST)
        if not all(type(channel) is str for channel in channels):
            raise ReplyError(BAD_REQUEST)
        draft = draft_of(self._context, fields)
        responses = await asyncio.gather(
            *(self._one(Channel(channel), draft, fields) for channel in channels)
        )
        return f'{{"responses":[{",".join(responses)}]}}'

    async def _one(self, channel: Channel, draft: Draft, fields: dict[str, Any]) -> str:
        try:
            result = await _publish(self._context, channel, draft, fields)
            return f'{{"result":{result}}}'
        except ReplyError as refusal:
            return f'{{"error":{error_body(refusal.error)}}}'
        except StoreError:
            return f'{{"error":{error_body(INTERNAL)}}}'


async def _publish(
    context: ApiContext, channel: Channel, draft: Draft, fields: dict[str, Any]
) -> str:
    rules = context.permissions.rules(channel)
    history = rules.history
    if wire.boolean(fields, "skip_history"):
        history = NO_HISTORY
    appended = await context.publish(channel, draft, history)
    if not appended.position.offset:
        return "{}"
    offset, epoch = appended.position
    return f'{{"offset":{offset},"epoch":{wire.quote(epoch)}}}'


def draft_of(context: ApiContext, fields: dict[str, Any]) -> Draft:
    """Return what to publish.

    Raises:
        ReplyError: 107 when there is no payload, or one that is too large.
    """
    data: RawJson | None = fields.get("data")
    if data is None or len(data) > context.settings.publication_size:
        raise ReplyError(BAD_REQUEST)
    return Draft(
        data,
        tags=tags_of(fields),
        idempotency_key=wire.text(fields, "idempotency_key"),
        version=wire.integer(fields, "version"),
        version_epoch=wire.text(fields, "version_epoch"),
    )

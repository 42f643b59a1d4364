"""``/api/history``."""

from __future__ import annotations

from typing import Any

from service.errors import (
    BAD_REQUEST,
    NOT_AVAILABLE,
    UNRECOVERABLE_POSITION,
    ReplyError,
)
from service.protocol import json as wire
from service.web.api.call import ApiMethod, channel_of

__all__ = ["ReadHistory"]


class ReadHistory(ApiMethod):
    """Read a channel's publications."""

    async def call(self, fields: dict[str, Any]) -> str:
        """Return publications, top offset and epoch."""
        channel = channel_of(fields)
        rules = self._context.permissions.rules(channel)
        if rules.history.size == 0:
            raise ReplyError(NOT_AVAILABLE)
        limit = wire.integer(fields, "limit", low=-1)
        reverse = wire.boolean(fields, "reverse")
        mapping = wire.mapping(fields, "since")
        since = None if mapping is None else wire.position(mapping)
        if since is not None and reverse and since.offset == 0:
            raise ReplyError(BAD_REQUEST)
        page = await self._context.read(
            channel,
            rules.history,
            None if since is None else since.offset,
            limit,
            reverse=reverse,
        )
        if since is not None and since.epoch not in ("", page.top.epoch):
            raise ReplyError(UNRECOVERABLE_POSITION)
        bodies = ",".join([wire.publication_body(item) for item in page.publications])
        return (
            f'{{"publications":[{bodies}],"offset":{page.top.offset},'
            f'"epoch":{wire.quote(page.top.epoch)}}}'
        )

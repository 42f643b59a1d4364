"""``/api/batch``: several calls in one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from service.auth import ApiKey
from service.core.errors import (
    BAD_REQUEST,
    LIMIT_EXCEEDED,
    METHOD_NOT_FOUND,
    ReplyError,
)
from service.http.api.call import Methods
from service.http.api.context import ApiContext
from service.protocol.json import error_body

__all__ = ["Batch", "BatchRequest", "BatchResult"]

TOGETHER = 16  # commands under way at once, when parallel

REPLIES = 16 * 1024 * 1024  # characters; commands beyond are refused with 106


class BatchRequest(msgspec.Struct, kw_only=True):
    """Carry out commands, one after another unless *parallel*."""

    commands: list[Annotated[dict[str, Raw], Meta(min_length=1, max_length=1)]]
    parallel: bool | None = None


class BatchResult(msgspec.Struct):
    """The outcomes in the order of the commands: the method's result, or an error."""

    replies: list[dict[str, Any]]


class Batch:
    """The call of the method, on *methods* once they are there."""

    def __init__(self, methods: Callable[[], Methods]) -> None:
        self._methods = methods

    async def __call__(self, context: ApiContext, request: BatchRequest) -> str:
        """Carry out the commands; one that fails does not stop the others."""
        commands = request.commands
        if len(commands) > context.settings.batch_size:
            raise ReplyError(BAD_REQUEST)
        replies: list[str] = []
        written = 0
        size = TOGETHER if request.parallel else 1
        for start in range(0, len(commands), size):
            piece = commands[start : start + size]
            if written > REPLIES:
                replies += [f'{{"error":{error_body(LIMIT_EXCEEDED)}}}'] * len(piece)
                continue
            done = await asyncio.gather(
                *[self._one(each, context.key) for each in piece]
            )
            written += sum(map(len, done))
            replies += done
        return f'{{"replies":[{",".join(replies)}]}}'

    async def _one(self, command: dict[str, Raw], key: ApiKey) -> str:
        ((name, body),) = command.items()
        methods = self._methods()
        method = methods.get(name)
        try:
            if method is None or not method.wrapped:  # no batch in a batch
                raise ReplyError(METHOD_NOT_FOUND)
            return f'{{"{name}":{await methods.call(method, bytes(body), key)}}}'
        except ReplyError as refusal:
            return f'{{"error":{error_body(refusal.error)}}}'

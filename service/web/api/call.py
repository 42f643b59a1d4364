"""One call of the server API: key, body, method, answer (PROTOCOL.md, 6).

A bad key is 401 with an empty body, a body that cannot be decoded 400, one that is too
large 413. Everything else is 200 with ``{"result":{…}}`` or ``{"error":{…}}``.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any

import falcon
import falcon.asgi

from _speedups import scan_object
from service.errors import BAD_REQUEST, INTERNAL, ErrorReply, ReplyError, StoreError
from service.hub.fanout import Hub
from service.model import Appended, Channel, Draft, HistoryPage, RawJson
from service.permissions import Permissions
from service.ports import History
from service.protocol import json as wire
from service.settings import ApiSettings

__all__ = ["ApiContext", "ApiMethod", "error_body"]

RAW = frozenset({"data", "info"})
"""Fields that are payloads: never parsed, handed on as they came."""


class ApiContext:
    """What the methods of the API share."""

    def __init__(
        self,
        settings: ApiSettings,
        key: str,
        hub: Callable[[], Hub],
        permissions: Permissions,
    ) -> None:
        self.settings = settings
        self.permissions = permissions
        self._key = key.encode()
        self._hub = hub

    def admits(self, req: falcon.asgi.Request) -> bool:
        """Tell whether the request carries the API key, in one of its three forms."""
        given = req.get_header("x-api-key")
        if given is None:
            scheme, _, value = (req.get_header("authorization") or "").partition(" ")
            given = value if scheme.lower() == "apikey" else None
        if given is None:
            given = req.get_param("api_key")
        if not given or not self._key:
            return False
        return hmac.compare_digest(given.encode(), self._key)

    async def publish(
        self, channel: Channel, draft: Draft, history: History
    ) -> Appended:
        """Publish and wait for the commit.

        Raises:
            StoreError: It was not published, or nobody knows.
        """
        future: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()

        def done(outcome: Appended | StoreError) -> None:
            if future.done():
                return  # the caller hung up
            if isinstance(outcome, StoreError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self._hub().publish(channel, draft, history, done)
        return await future

    async def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        *,
        reverse: bool,
    ) -> HistoryPage:
        """Read history.

        Raises:
            StoreError: The read failed.
        """
        future: asyncio.Future[HistoryPage] = asyncio.get_running_loop().create_future()

        def done(outcome: HistoryPage | StoreError) -> None:
            if future.done():
                return
            if isinstance(outcome, StoreError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self._hub().read(channel, history, since, limit, done, reverse=reverse)
        return await future


class ApiMethod:
    """A method of the API: subclasses say what `call` does."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def call(self, fields: dict[str, Any]) -> str:
        """Do it; return the result as JSON text.

        Raises:
            ReplyError: The documented refusal.
            StoreError: The store failed.
            CodecError: A field has the wrong type.
        """
        raise NotImplementedError

    async def on_post(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer one call."""
        if not self._context.admits(req):
            resp.status = falcon.HTTP_401
            return
        body = await _read(req, self._context.settings.request_size)
        if body is None:
            resp.status = falcon.HTTP_413
            # The rest of the body is not read, so nothing can follow it.
            resp.set_header("Connection", "close")
            return
        try:
            fields = scan_object(body, RAW)
        except ValueError:
            resp.status = falcon.HTTP_400
            return
        resp.content_type = falcon.MEDIA_JSON
        try:
            resp.text = f'{{"result":{await self.call(fields)}}}'
        except ReplyError as refusal:
            resp.text = f'{{"error":{error_body(refusal.error)}}}'
        except ValueError:  # CodecError: a field of the wrong type
            resp.text = f'{{"error":{error_body(BAD_REQUEST)}}}'
        except StoreError:
            resp.text = f'{{"error":{error_body(INTERNAL)}}}'


def error_body(error: ErrorReply) -> str:
    """Return an error as the API shows it."""
    temporary = ',"temporary":true' if error.temporary else ""
    return f'{{"code":{error.code},"message":"{error.message}"{temporary}}}'


def channel_of(fields: dict[str, Any]) -> Channel:
    """Return the required field ``channel``.

    Raises:
        ReplyError: 107 when it is missing.
    """
    channel = wire.text(fields, "channel")
    if not channel:
        raise ReplyError(BAD_REQUEST)
    return Channel(channel)


def tags_of(fields: dict[str, Any]) -> RawJson | None:
    """Return the field ``tags`` as JSON text.

    Raises:
        ReplyError: 107 when it is not an object of strings.
    """
    tags = wire.mapping(fields, "tags")
    if not tags:
        return None
    parts = []
    for name, value in tags.items():
        if type(value) is not str:
            raise ReplyError(BAD_REQUEST)
        parts.append(f"{wire.quote(name)}:{wire.quote(value)}")
    return RawJson(f"{{{','.join(parts)}}}")


async def _read(req: falcon.asgi.Request, limit: int) -> bytes | None:
    """Return the body, or None when it is longer than *limit*."""
    if (req.content_length or 0) > limit:
        return None
    body = bytearray()
    async for chunk in req.stream:
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)

"""One call of the server API: key, body, method, answer (PROTOCOL.md, 6).

A bad key is 401 with an empty body, a body that is no JSON object 400, one that is too
large 413. Everything else is 200 with ``{"result":{…}}`` or ``{"error":{…}}``; in the
transport error mode, which a setting or a header asks for, an error is the body and
has a status of its own.

Requests are `msgspec` structs: the one description of a method both validates what
callers send and is published in the OpenAPI document. Payloads in them are `Raw`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

import falcon
import falcon.asgi
import msgspec
import structlog

from _speedups import check
from service.auth import ApiKey, Scope
from service.core.errors import (
    BAD_REQUEST,
    INTERNAL,
    PERMISSION_DENIED,
    ErrorReply,
    ReplyError,
    StoreError,
    describe,
)
from service.http.api.context import ApiContext
from service.http.api.key import ApiKeys
from service.protocol.json import error_body
from service.settings import ApiSettings

__all__ = ["ApiResource", "Method", "Methods", "status_of"]

log = structlog.get_logger("steadwire")
audit = structlog.get_logger("steadwire.audit")


class Method(NamedTuple):
    """A method of the API: a row of the table in `methods`.

    Attributes:
        name: As it stands in the path.
        scope: What the caller's key must grant.
        summary: What it does, for the OpenAPI document.
        request: What its body must look like.
        result: What it answers with.
        call: Does it; returns the result as JSON text. Raises `ReplyError` for a
            documented refusal and `StoreError` when the store failed.
        errors: Its refusals beside 100, 103 and 107.
        wrapped: Whether the result stands in ``{"result":…}``.
    """

    name: str
    scope: Scope
    summary: str
    request: type[msgspec.Struct]
    result: type[msgspec.Struct]
    call: Callable[[ApiContext, Any], Awaitable[str]]
    errors: tuple[ErrorReply, ...] = ()
    wrapped: bool = True


class Methods:
    """The methods by name, and how any of them is called."""

    def __init__(self, context: ApiContext, methods: Iterable[Method]) -> None:
        self._context = context
        self._methods: Mapping[str, Method] = {each.name: each for each in methods}

    def get(self, name: str) -> Method | None:
        """Return a method, or None."""
        return self._methods.get(name)

    async def call(self, method: Method, body: bytes | str, key: ApiKey) -> str:
        """Call a method with a valid JSON object; return the result as JSON text.

        Args:
            method: What is called.
            body: The request.
            key: Who calls.

        Raises:
            ReplyError: It is refused or failed; nothing else comes out.
        """
        metrics = self._context.services.metrics
        metrics.api_calls.add(method.name)
        request, outcome = None, "failed"
        try:
            if not key.allows(method.scope):
                raise ReplyError(PERMISSION_DENIED)
            request = _decode(method, body)
            result = await self._run(method, request, key)
            outcome = "done"
        except ReplyError as refusal:
            metrics.api_errors.add(refusal.error.code)
            outcome = str(refusal.error.code)
            raise
        finally:
            if method.scope is Scope.ADMINISTER:
                audit.info(
                    "administered",
                    method=method.name,
                    key=key.name,
                    user=getattr(request, "user", None),
                    outcome=outcome,
                )
        return result

    async def _run(self, method: Method, request: msgspec.Struct, key: ApiKey) -> str:
        try:
            return await method.call(self._context.called_with(key), request)
        except ReplyError:
            raise
        except StoreError:
            raise ReplyError(INTERNAL) from None
        except Exception as error:
            log.error("an API method failed", method=method.name, **describe(error))
            raise ReplyError(INTERNAL) from None


def _decode(method: Method, body: bytes | str) -> msgspec.Struct:
    try:
        return msgspec.json.decode(body, type=method.request)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ReplyError(BAD_REQUEST) from None


class ApiResource:
    """The resource of one method."""

    def __init__(
        self, method: Method, methods: Methods, settings: ApiSettings, keys: ApiKeys
    ) -> None:
        self._method = method
        self._methods = methods
        self._settings = settings
        self._keys = keys

    async def on_post(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer one call."""
        key = await self._keys.admit(req)
        if key is None:
            resp.status = falcon.HTTP_401
            return
        body = await _read(req, self._settings.request_size)
        if body is None:
            resp.status = falcon.HTTP_413
            # The rest of the body is not read, so nothing can follow it.
            resp.set_header("Connection", "close")
            return
        resp.content_type = falcon.MEDIA_JSON
        try:
            text = check(body)
        except ValueError:
            text = ""
        if not text.startswith("{"):
            resp.status = falcon.HTTP_400
            resp.text = error_body(BAD_REQUEST)
            return
        try:
            result = await self._methods.call(self._method, text, key)
        except ReplyError as refusal:
            self._refuse(req, resp, refusal.error)
            return
        resp.text = f'{{"result":{result}}}' if self._method.wrapped else result

    def _refuse(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, error: ErrorReply
    ) -> None:
        asked = req.get_header("x-centrifugo-error-mode") == "transport"
        if asked or self._settings.error_mode == "transport":
            resp.status = falcon.code_to_http_status(status_of(error))
            resp.text = error_body(error)
        else:
            resp.text = f'{{"error":{error_body(error)}}}'


_STATUSES = {
    102: 404,
    103: 403,
    104: 404,
    107: 400,
    108: 400,
    111: 429,
    112: 416,
    113: 409,
}


def status_of(error: ErrorReply) -> int:
    """Return the HTTP status of an error in the transport error mode."""
    return _STATUSES.get(error.code, 500 if error.temporary else 400)


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

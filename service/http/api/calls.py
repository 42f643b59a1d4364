"""One call of the server API: key, body, method, answer (docs/api.md).

A wrong key is answered with 401 and an empty body, a body that is not a JSON object
with 400, one that is too large with 413. Every other call is answered with 200 and
``{"result":{…}}`` or ``{"error":{…}}``. In the transport error mode, which a setting or
a header asks for, an error is the whole body and has an HTTP status of its own.

Requests are `msgspec` structs: one description of a method validates what callers send
and is published in the OpenAPI document. Payloads in them are `Raw`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, NamedTuple

import falcon
import falcon.asgi
import msgspec
import structlog
from msgspec import Meta, Raw

from _speedups import check
from service.auth.api_keys import Scope
from service.core.errors import (
    BAD_REQUEST,
    INTERNAL,
    LIMIT_EXCEEDED,
    METHOD_NOT_FOUND,
    PERMISSION_DENIED,
    TOO_MANY_REQUESTS,
    ErrorReply,
    ReplyError,
    StoreError,
    describe,
)
from service.core.model import is_user
from service.http.api.context import ApiContext, ApiRuntime, store_error
from service.http.api.keys import ApiKeys
from service.http.api.refused_calls import RefusedCalls
from service.protocol.replies import error_body

__all__ = [
    "ApiResource",
    "Batch",
    "BatchRequest",
    "BatchResult",
    "Method",
    "call",
    "read_body",
    "status_of",
]

log = structlog.get_logger("steadwire")
audit = structlog.get_logger("steadwire.audit")

PARALLEL = 16  # commands of a parallel batch that run at once

REPLIES = 16 * 1024 * 1024  # characters of a batch's replies; then 106 for the rest


class Method(NamedTuple):
    """A method of the API: a row of the table in `methods`.

    Attributes:
        name: As in the path.
        scope: What the caller's key must grant.
        summary: What it does, for the OpenAPI document.
        request: The shape of its body.
        result: The shape of its result.
        run: Does it and returns the result as JSON text. Raises `ReplyError` for a
            documented refusal and `StoreError` when the store fails.
        errors: Its refusals beside 100, 103 and 107.
        wrapped: Whether the result is sent as ``{"result":…}``.
        expensive: Whether it is refused with 111 at the highest shed level.
    """

    name: str
    scope: Scope
    summary: str
    request: type[msgspec.Struct]
    result: type[msgspec.Struct]
    run: Callable[[ApiContext, Any], Awaitable[str]]
    errors: tuple[ErrorReply, ...] = ()
    wrapped: bool = True
    expensive: bool = False


async def call(method: Method, context: ApiContext, body: bytes | str) -> str:
    """Call a method with a valid JSON object; return the result as JSON text.

    Raises:
        ReplyError: The call is refused or has failed. Nothing else is raised.
    """
    metrics = context.runtime.metrics
    metrics.api_calls.add(method.name)
    request, outcome = None, "failed"
    try:
        if not context.key.allows(method.scope):
            raise ReplyError(PERMISSION_DENIED)
        if method.expensive and context.runtime.shedding.refuses_read():
            raise ReplyError(TOO_MANY_REQUESTS)
        request = _decode(method, body)
        result = await _run(method, context, request)
        outcome = "done"
    except ReplyError as refusal:
        metrics.api_errors.add(refusal.error.code)
        outcome = str(refusal.error.code)
        if refusal.error is BAD_REQUEST and context.refused is not None:
            context.refused.add(method.name, context.key.name, refusal.reason)
        raise
    finally:
        if method.scope is Scope.ADMINISTER:
            audit.info(
                "administered",
                method=method.name,
                key=context.key.name,
                user=getattr(request, "user", None),
                outcome=outcome,
            )
    return result


def _decode(method: Method, body: bytes | str) -> msgspec.Struct:
    try:
        request = msgspec.json.decode(body, type=method.request)
    except msgspec.ValidationError as error:  # it names fields and types, not values
        raise ReplyError(BAD_REQUEST, reason=str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ReplyError(BAD_REQUEST) from None
    # The schema bounds characters, not bytes.
    if not is_user(getattr(request, "user", None) or ""):
        raise ReplyError(BAD_REQUEST, reason="user is over 600 bytes")
    return request


async def _run(method: Method, context: ApiContext, request: msgspec.Struct) -> str:
    try:
        return await method.run(context, request)
    except ReplyError:
        raise
    except StoreError as error:
        raise ReplyError(store_error(error)) from None
    except Exception as error:
        log.error("an API method failed", method=method.name, **describe(error))
        raise ReplyError(INTERNAL) from None


class BatchRequest(msgspec.Struct, kw_only=True):
    """Carry out commands, one after another unless *parallel*."""

    commands: list[Annotated[dict[str, Raw], Meta(min_length=1, max_length=1)]]
    parallel: bool | None = None


class BatchResult(msgspec.Struct):
    """The outcomes in the order of the commands: the method's result, or an error."""

    replies: list[dict[str, Any]]


class Batch:
    """The method ``batch``: several calls in one request.

    Args:
        methods: What may be called; a batch is not among them.
    """

    def __init__(self, methods: Iterable[Method]) -> None:
        self._methods = {method.name: method for method in methods}

    async def __call__(self, context: ApiContext, request: BatchRequest) -> str:
        """Carry out the commands; one that fails does not stop the others."""
        commands = request.commands
        if len(commands) > context.settings.batch_size:
            raise ReplyError(BAD_REQUEST, reason="more commands than api.batch_size")
        replies: list[str] = []
        written = 0
        size = PARALLEL if request.parallel else 1
        for start in range(0, len(commands), size):
            piece = commands[start : start + size]
            if written > REPLIES:
                replies += [f'{{"error":{error_body(LIMIT_EXCEEDED)}}}'] * len(piece)
                continue
            done = await asyncio.gather(*[self._one(context, each) for each in piece])
            written += sum(map(len, done))
            replies += done
        return f'{{"replies":[{",".join(replies)}]}}'

    async def _one(self, context: ApiContext, command: dict[str, Raw]) -> str:
        ((name, body),) = command.items()
        method = self._methods.get(name)
        try:
            if method is None:
                raise ReplyError(METHOD_NOT_FOUND)
            return f'{{"{name}":{await call(method, context, bytes(body))}}}'
        except ReplyError as refusal:
            return f'{{"error":{error_body(refusal.error)}}}'


class ApiResource:
    """The Falcon resource of one method."""

    def __init__(
        self,
        method: Method,
        runtime: ApiRuntime,
        keys: ApiKeys,
        refused: RefusedCalls,
    ) -> None:
        self._method = method
        self._runtime = runtime
        self._settings = runtime.settings.api
        self._keys = keys
        self._refused = refused

    async def on_post(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer one call."""
        key = await self._keys.authenticate(req)
        if key is None:
            resp.status = falcon.HTTP_401
            return
        body = await read_body(req, self._settings.request_size)
        if body is None:
            resp.status = falcon.HTTP_413
            # The rest of the body is not read, so no request can follow it.
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
            words = "the body is not a JSON object"
            self._refused.add(self._method.name, key.name, words)
            return
        context = ApiContext(self._runtime, key, self._refused)
        try:
            result = await call(self._method, context, text)
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


async def read_body(req: falcon.asgi.Request, limit: int) -> bytes | None:
    """Return the body, or None when it is longer than *limit* bytes."""
    if (req.content_length or 0) > limit:
        return None
    body = bytearray()
    async for chunk in req.stream:
        body += chunk
        if len(body) > limit:
            return None
    return bytes(body)

"""Events of an HTTP API or a function URL (payload 2.0) as requests of ASGI.

One event is one whole request, and its answer one dict: nothing is streamed, and an
invocation ends with the answer.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from service.core.errors import CodecError

__all__ = ["is_request", "respond"]


def is_request(event: Mapping[str, Any]) -> bool:
    """Tell whether *event* is an HTTP request."""
    context = event.get("requestContext")
    return isinstance(context, Mapping) and isinstance(context.get("http"), Mapping)


async def respond(application: Any, event: Mapping[str, Any]) -> dict[str, Any]:
    """Let an ASGI application answer a request.

    Raises:
        CodecError: The event is not one of payload 2.0.
    """
    scope, body = _scope(event), _body(event)
    messages = [{"type": "http.request", "body": body}]
    status, headers, answered = 500, list[tuple[bytes, bytes]](), bytearray()

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], list(message.get("headers", ()))
        else:
            answered.extend(message.get("body", b""))

    await application(scope, receive, send)
    return _answer(status, headers, bytes(answered))


def _scope(event: Mapping[str, Any]) -> dict[str, Any]:
    context = event["requestContext"]
    http, path = context["http"], event.get("rawPath")
    method, stage = http.get("method"), context.get("stage", "$default")
    if not isinstance(path, str) or not isinstance(method, str):
        raise CodecError("a request without a method or a path")
    if path == f"/{stage}" or path.startswith(f"/{stage}/"):
        path = path[len(stage) + 1 :] or "/"
    headers = [
        (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in (event.get("headers") or {}).items()
    ]
    address = http.get("sourceIp")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": unquote(path),
        "raw_path": quote(path, safe="/%:@!$&'()*+,;=~").encode(),
        "query_string": str(event.get("rawQueryString") or "").encode(),
        "root_path": "",
        "headers": headers,
        "client": (address, 0) if isinstance(address, str) else None,
        "server": (context.get("domainName") or "localhost", 443),
    }


def _body(event: Mapping[str, Any]) -> bytes:
    body = event.get("body") or ""
    if not isinstance(body, str):
        raise CodecError("a body that is not text")
    if not event.get("isBase64Encoded"):
        return body.encode()
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise CodecError("a body that is not in base64") from error


def _answer(
    status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "statusCode": status,
        "headers": {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if name != b"content-length"  # the gateway counts what it sends
        },
    }
    try:
        answer["body"] = body.decode()
    except UnicodeDecodeError:
        answer["body"] = base64.b64encode(body).decode()
        answer["isBase64Encoded"] = True
    return answer

"""Events: what the gateway tells a Lambda function about a socket.

The shapes are those of the Lambda proxy integration of WebSocket APIs, as the fixtures
of AWS Powertools for Python record them: keys that do not apply are absent, a message
has neither headers nor query, and a disconnect has no body.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

__all__ = ["Connected", "Event", "connect_event", "disconnect_event", "message_event"]

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Connected:
    """A socket at the gateway.

    Attributes:
        id: Connection id; base64, so that it ends in ``=``.
        api: Id of the API.
        stage: Its stage.
        domain: Host that the client asked for.
        address: The client's IP address.
        at: When it connected, Unix seconds.
        headers: Of its handshake, names as received.
        query: Of its handshake, after the question mark.
    """

    id: str
    api: str
    stage: str
    domain: str
    address: str
    at: float
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    query: str = field(default="", repr=False)


def _context(
    socket: Connected, kind: str, route: str, request: str, wall: float
) -> Event:
    return {
        "routeKey": route,
        "eventType": kind,
        "extendedRequestId": request,
        "requestTime": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(wall)),
        "messageDirection": "IN",
        "stage": socket.stage,
        "connectedAt": int(socket.at * 1000),
        "requestTimeEpoch": int(wall * 1000),
        "identity": {"sourceIp": socket.address},
        "requestId": request,
        "domainName": socket.domain,
        "connectionId": socket.id,
        "apiId": socket.api,
    }


def connect_event(socket: Connected, request: str, wall: float) -> Event:
    """Return the event of `$connect`, which is handled before the socket is open."""
    several: dict[str, list[str]] = {}
    for name, value in socket.headers:
        several.setdefault(name, []).append(value)
    event: Event = {
        "headers": {name: values[-1] for name, values in several.items()},
        "multiValueHeaders": several,
        "requestContext": _context(socket, "CONNECT", "$connect", request, wall),
        "isBase64Encoded": False,
    }
    query: dict[str, list[str]] = {}
    for name, value in parse_qsl(socket.query, keep_blank_values=True):
        query.setdefault(name, []).append(value)
    if query:
        event["queryStringParameters"] = {n: values[-1] for n, values in query.items()}
        event["multiValueQueryStringParameters"] = query
    return event


def message_event(socket: Connected, body: str, request: str, wall: float) -> Event:
    """Return the event of a message, whose route is `$default`."""
    context = _context(socket, "MESSAGE", "$default", request, wall)
    context["messageId"] = request
    return {"requestContext": context, "body": body, "isBase64Encoded": False}


def disconnect_event(
    socket: Connected, code: int, reason: str, request: str, wall: float
) -> Event:
    """Return the event of `$disconnect`, after the close with *code* and *reason*."""
    headers: Mapping[str, str] = {
        "Host": socket.domain,
        "x-api-key": "",
        "X-Forwarded-For": "",
        "x-restapi": "",
    }
    context = _context(socket, "DISCONNECT", "$disconnect", request, wall)
    context["disconnectStatusCode"] = code
    context["disconnectReason"] = reason
    return {
        "headers": dict(headers),
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "requestContext": context,
        "isBase64Encoded": False,
    }

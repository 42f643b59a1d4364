"""Arrivals: what the API Gateway tells of a socket, in one form for both integrations.

A Lambda function is given the event of the proxy integration. A server behind
HTTP_PROXY is given a request for each route, whose headers a template maps: anybody who
reaches the server could send those, so they are believed only where the shared secret
came with them. Both become an `Arrival`.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from service.core.errors import CodecError
from service.core.model import ClientId

__all__ = [
    "SECRET_HEADER",
    "Answer",
    "Application",
    "Arrival",
    "Kind",
    "deliver_event",
    "from_event",
    "from_request",
    "hold_of",
    "trusts",
]

SECRET_HEADER = "x-gw-secret"
"""The header in which HTTP_PROXY integrations send the shared secret."""

_DELIVER = "steadwire.deliver"  # key of the event of a delivery that is handed over

_OWN = ("x-gw-", "x-ws-")  # headers of the template, which no client can set


class Kind(enum.Enum):
    """What happened to a socket."""

    CONNECT = "CONNECT"
    MESSAGE = "MESSAGE"
    DISCONNECT = "DISCONNECT"


@dataclass(frozen=True, slots=True)
class Arrival:
    """One event of a socket at the gateway.

    Attributes:
        kind: What happened.
        client: The connection's id at the gateway, which is the client's id too.
        connected_at: When the gateway took the connection, in Unix seconds; 0 unknown.
        address: The client's IP address, as the gateway saw it.
        host: The host that the client asked for.
        headers: Those of the handshake, names in lower case; a connect's alone.
        query: Those of the handshake; a connect's alone.
        text: The message.
        code: The WebSocket code that ended the connection; 0 unknown.
    """

    kind: Kind
    client: ClientId
    connected_at: float = 0.0
    address: str = ""
    host: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    text: str = field(default="", repr=False)
    code: int = 0

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols that the client offers, in its order."""
        offered = self.headers.get("sec-websocket-protocol", "").split(",")
        return [name.strip() for name in offered if name.strip()]


class Answer(NamedTuple):
    """What an arrival is answered with.

    Attributes:
        status: For a connect, whether the socket is opened: any but 200 refuses it.
            Else 200: whatever goes wrong is told to the client in its own protocol.
        subprotocol: The one chosen for the socket, "" for none; a connect's alone.
    """

    status: int = 200
    subprotocol: str = ""


class Application(Protocol):
    """The service behind the gateway, whichever integration called it."""

    async def handle(self, arrival: Arrival) -> Answer:
        """Handle one event of a socket; never raises."""

    async def deliver(self, hold: Mapping[str, Any]) -> None:
        """Deliver under a hold that another invocation handed over; never raises."""

    async def sweep(self) -> None:
        """Do the time-driven work once; never raises."""


def deliver_event(hold: Mapping[str, Any]) -> dict[str, Any]:
    """Return the event of an invocation that delivers under *hold*."""
    return {_DELIVER: dict(hold)}


def hold_of(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the hold of a `deliver_event`; None if *event* is another."""
    hold = event.get(_DELIVER)
    return hold if isinstance(hold, Mapping) else None


def trusts(secret: str, given: str | None) -> bool:
    """Tell whether *given* is the shared secret; False where none is set.

    It takes the same time wherever they differ.
    """
    if not secret or given is None:
        return False
    return hmac.compare_digest(given.encode(errors="replace"), secret.encode())


def from_event(event: Mapping[str, Any]) -> Arrival:
    """Return the arrival of an event of the Lambda proxy integration.

    Raises:
        CodecError: It is not one.
    """
    context = event.get("requestContext")
    if not isinstance(context, Mapping):
        raise CodecError("an event without a request context")
    kind = _kind(context.get("eventType"))
    headers: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    if kind is Kind.CONNECT:
        headers = _joined(event)
        query = _texts(event.get("queryStringParameters"))
    identity = context.get("identity")
    return Arrival(
        kind=kind,
        client=_client(context.get("connectionId")),
        connected_at=_number(context.get("connectedAt")) / 1000.0,
        address=_texts(identity).get("sourceIp", ""),
        host=str(context.get("domainName") or ""),
        headers=headers,
        query=query,
        text=_body(event) if kind is Kind.MESSAGE else "",
        code=int(_number(context.get("disconnectStatusCode"))),
    )


def from_request(
    kind: Kind, headers: Mapping[str, str], query: Mapping[str, str], body: bytes
) -> Arrival:
    """Return the arrival of a request of an HTTP_PROXY integration.

    Args:
        kind: That of the route which was asked for.
        headers: Of the request, names in lower case.
        query: Of the request.
        body: Of the request.

    Raises:
        CodecError: The template's headers are missing, or the body is not text.
    """
    connecting = kind is Kind.CONNECT
    try:
        text = body.decode() if kind is Kind.MESSAGE else ""
    except UnicodeDecodeError as error:
        raise CodecError("a message that is not text") from error
    return Arrival(
        kind=kind,
        client=_client(headers.get("x-ws-connection-id")),
        connected_at=_number(headers.get("x-ws-connected-at")) / 1000.0,
        address=headers.get("x-ws-source-ip", ""),
        host=headers.get("x-ws-domain", ""),
        headers={
            name: value
            for name, value in headers.items()
            if connecting and not name.startswith(_OWN)
        },
        query=query if connecting else {},
        text=text,
        code=int(_number(headers.get("x-ws-disconnect-code"))),
    )


def _kind(given: object) -> Kind:
    try:
        return Kind(given)
    except ValueError as error:
        raise CodecError("an event of an unknown type") from error


def _client(given: object) -> ClientId:
    # 128 is far over what the gateway gives; it bounds the keys of the table.
    if not isinstance(given, str) or not 0 < len(given) <= 128:
        raise CodecError("an event without a connection id")
    return ClientId(given)


def _number(given: object) -> float:
    """Return a number, or 0 for what is none: context variables may be empty."""
    if isinstance(given, int | float):
        return float(given)
    if isinstance(given, str) and given.isascii() and given.isdigit():
        return float(given)
    return 0.0


def _texts(given: object) -> dict[str, str]:
    if not isinstance(given, Mapping):
        return {}
    return {
        name: value
        for name, value in given.items()
        if isinstance(name, str) and isinstance(value, str)
    }


def _joined(event: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of an event, the lines of each as one (RFC 9110, 5.3)."""
    several = event.get("multiValueHeaders")
    if not isinstance(several, Mapping):
        found = _texts(event.get("headers"))
        return {name.lower(): value for name, value in found.items()}
    lines: dict[str, list[str]] = {}
    for name, values in several.items():
        if isinstance(name, str) and isinstance(values, list):
            texts = [value for value in values if isinstance(value, str)]
            lines.setdefault(name.lower(), []).extend(texts)
    return {
        name: ("; " if name == "cookie" else ", ").join(texts)
        for name, texts in lines.items()
    }


def _body(event: Mapping[str, Any]) -> str:
    body = event.get("body", "")
    if not isinstance(body, str):
        raise CodecError("a message without a body")
    if not event.get("isBase64Encoded"):
        return body
    try:
        return base64.b64decode(body, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise CodecError("a message that is not text") from error

"""HTTP/1.1: Hypercorn's, without cleartext HTTP/2 and without ambiguous requests.

A request that a proxy and this server could read differently is refused, for then the
rules of the proxy could be got round. HTTP/2 without TLS is off unless
``server.cleartext_http2`` asks for it: ``Upgrade: h2c`` is ignored and the preface of
HTTP/2 answered with 505.

A WebSocket's handshake of the usual form is not read here, but by `plain_handshake`; it
comes here when it is refused.

In a turn of the event loop `REQUESTS` requests of one address are begun, however many
connections they come on. The others wait for a turn to come, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import h11
from hypercorn.events import Closed, Event
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol

from service.core.address_shares import SHARE
from service.settings import ServerSettings

__all__ = ["REQUESTS", "Http1Protocol", "joined"]

REQUESTS: Final = 4
"""Requests of one address that are begun in a turn of the event loop."""

_HEALTH = b"/health/"
"""The only paths that are served to a connection in the reserve."""

_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#@]+)(/[^?]*)?(\?.*)?")
"""An absolute-form target (RFC 9112, 3.2.2): its authority, path and query."""

# Fields that are one list, over however many lines (RFC 9110, 5.3), of those that
# Hypercorn and wsproto read the last line of.
_LISTS: Final = frozenset(
    {b"connection", b"upgrade", b"sec-websocket-protocol", b"sec-websocket-extensions"}
)
# RFC 6455, 11.3: these must not appear more than once.
_SINGLE: Final = (b"sec-websocket-key", b"sec-websocket-version")

_VERSIONS: Final = (b"1.0", b"1.1")

_Headers = list[tuple[bytes, bytes]]


class Connection(Protocol):
    """The TCP connection below, as far as its protocol needs it.

    Attributes:
        settings: Those of the listener.
        reserved: Whether it was accepted for the health endpoints alone.
    """

    settings: ServerSettings
    reserved: bool

    @property
    def draining(self) -> bool:
        """Whether the process shuts down."""

    def turn(self, size: int) -> Awaitable[None] | None:
        """Take *size* bytes of its address's share; what is returned is awaited."""


class _Refused(Exception):
    """The request is answered with *status*, and the connection closed."""

    def __init__(self, status: int) -> None:
        self.status = status


class _Parser(h11.Connection):
    """h11's connection, which leaves it to `HttpStream` to answer an Expect."""

    @property
    def they_are_waiting_for_100_continue(self) -> bool:
        """Always false, so that Hypercorn asks for no body before it is wanted."""
        return False


class Http1Protocol(H11Protocol):
    """The requests of one connection, one after the other."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connection = _Parser(
            h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size
        )
        # `connection.TcpConnection` has put itself there.
        self._tcp: Connection = self.connection_state.connection  # type: ignore[attr-defined]

    async def handle(self, event: Event) -> None:
        """Take bytes from the peer, or its end."""
        try:
            await super().handle(event)
        except _Refused as refused:
            await self._send_error_response(refused.status)
            await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        if self._tcp.reserved and not event.target.startswith(_HEALTH):
            raise _Refused(503)
        if self._tcp.settings.cleartext_http2 and not self.ssl:
            await super()._check_protocol(event)
        if event.http_version not in _VERSIONS:
            raise _Refused(505)

    async def _create_stream(self, request: h11.Request) -> None:
        normal = _normal(request)
        later = self._tcp.turn(SHARE // REQUESTS)
        if later is not None:
            await later
        await super()._create_stream(normal)

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what the stream answers."""
        if isinstance(event, Response) and event.status_code >= 200:
            more = self._persistence(event.headers)
            event = replace(event, headers=[*event.headers, *more])
        await super().stream_send(event)

    def _persistence(self, headers: Sequence[tuple[bytes, bytes]]) -> _Headers:
        """Return the fields that say whether the connection stays open."""
        if any(name.lower() == b"connection" for name, _ in headers):
            return []
        if (
            self.connection.their_state is not h11.DONE  # the body is not read
            or self._tcp.draining
            or self._tcp.reserved
        ):
            return [(b"connection", b"close")]
        seconds = int(self._tcp.settings.keep_alive)
        if (
            not seconds
            or self.keep_alive_requests >= self.config.keep_alive_max_requests
        ):
            return []
        # Not in a standard, but Node's and others' clients do not wait until the end.
        return [(b"keep-alive", b"timeout=%d" % seconds)]


def _normal(request: h11.Request) -> h11.Request:
    """Return *request* in the one form that the rest reads.

    Raises:
        _Refused: 400, it has two readings.
    """
    headers = list(request.headers)
    names = [name for name, _ in headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise _Refused(400)
    if any(names.count(name) > 1 for name in _SINGLE):
        raise _Refused(400)
    if any(name in _LISTS and not value.isascii() for name, value in headers):
        raise _Refused(400)  # Hypercorn and wsproto fail at them
    target = request.target
    if not target.startswith(b"/") and not (
        target == b"*" and request.method == b"OPTIONS"
    ):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise _Refused(400)
        target = (absolute[2] or b"/") + (absolute[3] or b"")
        # RFC 9112, 3.2.2: the Host that was received is ignored.
        headers = [(name, value) for name, value in headers if name != b"host"]
        headers.append((b"host", absolute[1]))
    elif len(names) == len(set(names)) and _upgrade_is_plain(headers):
        return request  # h11 checks each field of a new one
    return h11.Request(
        method=request.method,
        target=target,
        headers=joined(headers),
        http_version=request.http_version,
    )


def _upgrade_is_plain(headers: _Headers) -> bool:
    return all(value == b"websocket" for name, value in headers if name == b"upgrade")


def joined(headers: _Headers) -> _Headers:
    """Return *headers* with the lines of each list that we read as one line."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _LISTS:
            found[name] = found[name] + b"," + value if name in found else value
    if not found:
        return headers
    upgrade = found.get(b"upgrade", b"").lower().split(b",")
    if b"websocket" in [each.strip() for each in upgrade]:
        found[b"upgrade"] = b"websocket"
    return [pair for pair in headers if pair[0] not in _LISTS] + list(found.items())

"""The opening handshake of a WebSocket over HTTP/1.1 where it is plain: without h11.

Half of what a connect costs was h11's parser, its checks of each header, once on the
way in and once on the way out, and the tasks of the request. Nearly every handshake is
one form of head that has one reading. It is read here by a regular expression, its
stream is Hypercorn's (`stream`), as are the scope and the checks of the handshake, the
connection's own task calls the application, and an answer of 101 is written as it is.

Invariants:

P1 A head is plain only if h11 and `http1` read in it what is read here, and refuse
   nothing: what they refuse or mend is written down there alone. Everything that is not
   in the list below is theirs.
P2 It is the first that the peer sends, all of it, in one read, and nothing behind it.
P3 Only an acceptance is answered here. Before anything else is written (a refusal, or
   the 400 for bytes that come before the answer), h11 is given the same head, and
   answers from the state in which it would have been.
P4 The rules of the connection hold as on the other path: the reserve is served no
   WebSocket, a request takes its part of its address's share before it is begun, and
   the times of a request that is under way.

A plain head has an origin-form target of the characters that a URI may have, HTTP/1.1
and no other; each line is a name of letters, digits and hyphens, a colon, one space,
and words of visible ASCII; no name twice; a Host, a key of 16 bytes, version 13, one
``Upgrade: websocket``, and no other token than ``Upgrade`` and ``keep-alive`` in
Connection; no body, no trailers, and nothing that asks for another protocol or for an
answer before the answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache, partial
from time import time
from typing import Any, Final, Protocol, cast

import h11
import hypercorn.protocol.h11
from hypercorn.asyncio.task_group import _handle
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Data, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H11WSConnection
from hypercorn.protocol.ws_stream import WSStream

from service.server.http1 import Http1Protocol

__all__ = ["PlainHandshake", "fits", "plain_head"]

_HEAD: Final = re.compile(
    rb"GET (/[A-Za-z0-9/._~!$&'()*+,;=:@%?-]*+) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z0-9-]++: [!-~]++(?: ++[!-~]++)*+\r\n)++)\r\n"
)
_FIELD: Final = re.compile(rb"([^:\r]+): ([^\r]+)\r\n")
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{22}==")
_CONNECTION: Final = frozenset({b"upgrade", b"keep-alive, upgrade"})
# What has a meaning for h11, for `http1` or for Hypercorn beyond its being there.
_ODD: Final = frozenset(
    {
        b"content-length",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
    }
)

# The fields of an acceptance that needs no further look; and their values, for an
# application may have added them.
_VALUE: Final = re.compile(rb"[!-~]++(?: ++[!-~]++)*+")
_OWN: Final = frozenset(
    {
        b"connection",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"upgrade",
    }
)

_Headers = list[tuple[bytes, bytes]]


def fits(config: Any) -> bool:
    """Return whether Hypercorn's configuration asks for nothing that is not here."""
    # Pings need a task, and raw headers h11.
    pings: float | None = config.websocket_ping_interval
    return pings is None and not config.h11_pass_raw_headers


def plain_head(data: bytes) -> tuple[bytes, _Headers] | None:
    """Return target and headers of a plain handshake; None if *data* is anything else.

    The names of the headers are in lower case.
    """
    found = _HEAD.fullmatch(data)
    if found is None:
        return None
    target, lines = found.groups()
    headers = [(name.lower(), value) for name, value in _FIELD.findall(lines)]
    fields = dict(headers)
    plain = (
        fields.get(b"upgrade") == b"websocket"
        and fields.get(b"connection", b"").lower() in _CONNECTION
        and fields.get(b"sec-websocket-version") == b"13"
        and _KEY.fullmatch(fields.get(b"sec-websocket-key", b"")) is not None
        and b"host" in fields
        and len(fields) == len(headers)
        and _ODD.isdisjoint(fields)
    )
    return (target, headers) if plain else None


class Connection(Protocol):
    """The TCP connection below: what writes for this protocol.

    Attributes:
        config: Hypercorn's.
    """

    config: Any

    def write(self, data: bytes) -> int:
        """Write *data*; return the bytes that wait in the transport."""

    async def drain(self) -> None:
        """Wait while the transport is paused; return also when the peer is gone."""

    async def protocol_send(self, event: Event) -> None:
        """Carry out an event of the HTTP protocol."""


class PlainHandshake:
    """A connection's protocol, from a plain handshake on.

    It has the part of Hypercorn's task group that a stream needs, and, like Hypercorn's
    wrapper of protocols, the one that is used as ``protocol``: h11's once it is needed.

    Args:
        data: The head.
        tcp: The connection.
        app: The application, as Hypercorn calls it.
        context: Hypercorn's.
        ends: The state of the connection, whether there is TLS, and the addresses of
            the client and the server.

    Attributes:
        protocol: None until h11's is needed.
    """

    __slots__ = ("_arguments", "_call", "_data", "_ends", "_stream", "_tcp", "protocol")

    def __init__(
        self,
        data: bytes,
        tcp: Connection,
        app: Any,
        context: Any,
        ends: tuple[Any, bool, Any, Any],
    ) -> None:
        self.protocol: Http1Protocol | None = None
        self._data = data
        self._tcp = tcp
        self._arguments = app, tcp.config, context
        self._ends = ends
        self._call: Callable[[], Coroutine[Any, Any, None]] | None = None
        # The class that is installed (`install`).
        made: Any = hypercorn.protocol.h11.WSStream  # type: ignore[attr-defined]
        self._stream: WSStream = made(
            *self._arguments, self, *ends[1:], self._stream_send, STREAM_ID
        )

    async def begin(self, target: bytes, headers: _Headers) -> None:
        """Give the request to its stream, which lets it through or refuses it."""
        request = Request(
            stream_id=STREAM_ID,
            headers=headers,
            http_version="1.1",
            method="GET",
            raw_path=target,
            state=self._ends[0],
        )
        await self._stream.handle(request)
        await self._arguments[2].mark_request()

    async def call(self) -> None:
        """Call the application, if the stream has let the request through."""
        call, self._call = self._call, None
        if call is not None:
            await call()

    async def handle(self, event: Event) -> None:
        """Take bytes from the peer, or its end."""
        if self.protocol is not None:
            await self.protocol.handle(event)
        elif isinstance(event, RawData):
            await self._stream.handle(Data(stream_id=STREAM_ID, data=event.data))
        elif isinstance(event, Closed):
            await self._stream.handle(StreamClosed(stream_id=STREAM_ID))

    # Of Hypercorn's task group.

    async def spawn_app(
        self,
        app: Any,
        config: Any,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        """Make the application's call, for the connection's task to await."""
        queue: asyncio.Queue[Any] = asyncio.Queue(config.max_app_queue_size)
        # The last two are for WSGI, which has no WebSockets.
        self._call = partial(_handle, app, config, scope, queue.get, send, _none, _none)
        return queue.put

    # Of the protocol above, for the stream.

    async def _stream_send(self, event: StreamEvent) -> None:
        if self.protocol is None:
            if isinstance(event, Response) and event.status_code == 101:
                answer = self._acceptance(event.headers)
                if answer is not None:
                    if self._tcp.write(answer):
                        await self._tcp.drain()
                    return
            self.protocol = self._other_path()
        await self.protocol.stream_send(event)

    def _acceptance(self, headers: _Headers) -> bytes | None:
        """Return an acceptance in h11's form; None if there is more to be said."""
        lines = [b"HTTP/1.1 101 \r\n"]
        for name, value in headers:
            if name not in _OWN or _VALUE.fullmatch(value) is None:
                return None
            lines.append(b"%b: %b\r\n" % (name, value))
        lines.append(_last_lines(self._tcp.config, int(time())))
        return b"".join(lines)

    def _other_path(self) -> Http1Protocol:
        """Return what would have read the head, having read it."""
        protocol = Http1Protocol(
            *self._arguments, self, *self._ends, self._tcp.protocol_send
        )
        connection = cast(h11.Connection, protocol.connection)
        connection.receive_data(self._data)
        connection.next_event()
        protocol.connection = H11WSConnection(connection)
        protocol.stream = self._stream
        protocol.keep_alive_requests = 1
        return protocol


@lru_cache(maxsize=4)
def _last_lines(config: Any, second: int) -> bytes:
    """Return the lines that Hypercorn adds to each answer, and the end of its head.

    Args:
        config: Hypercorn's.
        second: Of now, which is in one of the lines.
    """
    lines = [b"%b: %b\r\n" % pair for pair in config.response_headers("h11")]
    return b"".join([*lines, b"\r\n"])


def _none(*_: object) -> None:
    raise NotImplementedError

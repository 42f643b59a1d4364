"""HTTP/2: Hypercorn's, with budgets, and going on when an answer precedes the body.

Hypercorn ends the connection when a body goes on after its answer, and with it the
other requests; here the rest of the body is thrown away.

A frame that is not part of a request (ping, settings, priority, reset, a kind that is
not known, data without bytes) costs as much as one that is. Each connection has a
budget for them, `RATE`, and one for the windows that it opens, which grows with what it
was sent. One that sends more is closed with ENHANCE_YOUR_CALM. Reset requests count
too, so that nobody begins requests without end by taking them back. The address has its
share of a turn of the event loop: `PIECE` bytes fill it, for they can be a hundred
frames.

What a peer does not take is kept: `STREAMS` requests at once, `PART` bytes of each.
"""

from __future__ import annotations

from collections.abc import Awaitable
from time import monotonic
from typing import Any, Final, Protocol

import h2.errors
import h2.events
import h2.exceptions
from h2.settings import SettingCodes
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Body
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol
from priority.priority import PriorityError

from service.core.address_shares import SHARE
from service.core.rate_limits import Bucket, Rate

__all__ = ["PART", "RATE", "STREAMS", "Http2Protocol"]

RATE = Rate(rate=20.0, burst=200.0)
"""Frames of one connection that are not part of a request."""

PIECE = 1024
"""Bytes that are handled at once."""

STREAMS = 32
"""Requests and WebSockets of one connection at once (count)."""

PART = 8 * 1024
"""Bytes of an answer's body that wait for the peer's window."""

_WINDOW = 4096  # bytes that were sent, for each of which a window may be opened once

_CONTROL: Final = (
    h2.events.PingReceived,
    h2.events.PingAckReceived,
    h2.events.RemoteSettingsChanged,
    h2.events.SettingsAcknowledged,
    h2.events.PriorityUpdated,
    h2.events.StreamReset,
    h2.events.UnknownFrameReceived,
    h2.events.AlternativeServiceAvailable,
)


class Connection(Protocol):
    """The TCP connection below, as far as its protocol needs it."""

    def turn(self, size: int) -> Awaitable[None] | None:
        """Take *size* bytes of its address's share; what is returned is awaited."""

    def refuse(self, cause: str, **details: str) -> None:
        """Count this connection as one that was cut off."""

    def progress(self) -> tuple[int, int]:
        """Return the bytes written, and those that the peer's kernel acknowledged."""


class Http2Protocol(H2Protocol):
    """The requests of one connection, side by side."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # `connection.TcpConnection` has put itself there.
        self._tcp: Connection = self.connection_state.connection  # type: ignore[attr-defined]
        self._budget = Bucket(monotonic())
        self._windows = 0  # that were opened
        settings = self.connection.local_settings
        settings[SettingCodes.MAX_CONCURRENT_STREAMS] = STREAMS
        settings.acknowledge()  # it holds from the start

    async def handle(self, event: Event) -> None:
        """Take bytes from the peer, or its end."""
        if not isinstance(event, RawData):
            await super().handle(event)
            return
        for start in range(0, len(event.data), PIECE):
            piece = event.data[start : start + PIECE]
            later = self._tcp.turn(len(piece) * SHARE // PIECE)
            if later is not None:
                await later
            if self.closed:
                return
            await super().handle(RawData(piece))

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if not self._may(event):
                await self._end(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM, "frames")
                return
            if (
                isinstance(event, h2.events.DataReceived)
                and event.stream_id not in self.streams
            ):
                # The rest of a body that nobody wants; the window stays open for it, as
                # it is one for all requests.
                self.connection.acknowledge_received_data(
                    event.flow_controlled_length, event.stream_id
                )
            elif isinstance(event, h2.events.RequestReceived) and not _is_plain(event):
                self.connection.reset_stream(
                    event.stream_id, h2.errors.ErrorCodes.PROTOCOL_ERROR
                )
            else:
                try:
                    await super()._handle_events([event])
                except PriorityError:
                    # More priorities than are kept: of requests that were never sent.
                    await self._end(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM, "frames")
                    return
        await self._flush()

    def _may(self, event: h2.events.Event) -> bool:
        """Count a frame that is not part of a request; False: it is one too many."""
        if isinstance(event, h2.events.WindowUpdated):
            self._windows += 1
            if self._windows <= self._tcp.progress()[0] // _WINDOW:
                return True
        elif isinstance(event, h2.events.DataReceived):
            if event.data or event.stream_ended:
                return True
        elif not isinstance(event, _CONTROL):
            return True
        return self._budget.take(RATE, monotonic()) == 1

    async def _end(self, code: h2.errors.ErrorCodes, cause: str) -> None:
        self._tcp.refuse(cause)
        self.connection.close_connection(code)
        await self._flush()
        self.closed = True
        await self.has_data.set()
        await self.send(Closed())

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what a stream answers; a body in parts, as the peer takes them."""
        if not isinstance(event, Body) or len(event.data) <= PART:
            await super().stream_send(event)
            return
        for start in range(0, len(event.data), PART):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is None:
                return  # the peer has taken its request back
            part = event.data[start : start + PART]
            await super().stream_send(Body(stream_id=event.stream_id, data=part))
            await buffer.drain()


def _is_plain(request: h2.events.RequestReceived) -> bool:
    """Return whether a request is one that Hypercorn can read."""
    found = dict(request.headers)
    method, path = found.get(b":method", b""), found.get(b":path", b"")
    if not method.isascii() or not path.isascii() or not path:
        return False
    if method.upper() == b"CONNECT":
        if found.get(b":protocol") != b"websocket":
            return False
        return all(
            value.isascii()
            for name, value in request.headers
            if name.startswith((b"sec-websocket-", b"connection", b"upgrade"))
        )
    return True

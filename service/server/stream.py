"""One WebSocket on wsproto: Hypercorn's stream, with close codes and a direct write.

Over HTTP/1.1 the stream has the TCP connection for itself: it writes frames to the
connection's transport and gets the bytes that the connection reads. Over HTTP/2 both
go through Hypercorn's stream multiplexing.
"""

from __future__ import annotations

from asyncio import Queue, QueueEmpty
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from time import time
from typing import Any, Final, Protocol

from hypercorn.protocol.events import (
    Body,
    Data,
    EndData,
    Event,
    Request,
    Response,
    StreamClosed,
)
from hypercorn.protocol.ws_stream import ASGIWebsocketState, Handshake, WSStream
from hypercorn.typing import ASGISendEvent, WebsocketAcceptEvent
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.events import Event as FrameEvent
from wsproto.extensions import Extension
from wsproto.handshake import server_extensions_handshake
from wsproto.utilities import LocalProtocolError, generate_accept_token

from _speedups import SocketWriter, build_frame
from service.core.errors import SHUTDOWN
from service.server.http1 import joined
from service.server.http_stream import RequestWatcher
from service.server.message_size import BoundedDeflate, SizeLimit
from service.settings import ServerSettings

__all__ = [
    "BINARY",
    "HIGH_WATER",
    "REASONS",
    "TEXT",
    "DirectReader",
    "Transport",
    "WebSocketStream",
]

TEXT = 0x1  # opcodes (RFC 6455, 5.2)
BINARY = 0x2
HIGH_WATER = 64 * 1024  # bytes; asyncio and uvloop pause a writer above it

# wsproto's own texts quote the data received; the code is enough for the peer.
REASONS: Final = {
    1002: "protocol error",
    1007: "invalid payload data",
    1009: "message too big",
}


class DirectReader(Protocol):
    """A stream that the transport calls, without a task in between."""

    def data_received(self, data: bytes) -> None:
        """Take bytes from the peer."""

    def eof_received(self) -> bool:
        """Take the end of the peer's data; return whether it is passed on now."""

    def peer_gone(self) -> None:
        """Note that the peer sends nothing more, or is lost; called when detached."""


class Transport(RequestWatcher, Protocol):
    """The TCP connection, as far as a stream needs it."""

    @property
    def socket(self) -> SocketWriter:
        """Return its writer."""

    def take_over(self, stream: WebSocketStream) -> None:
        """Give *stream* the bytes that are read from here on."""

    def divert(self, target: DirectReader) -> None:
        """Let the transport itself call *target*, until the connection ends."""

    def pause_reading(self) -> None:
        """Read nothing; harmless when it is so."""

    def resume_reading(self) -> None:
        """Read again; harmless when it is so."""

    def pass_eof(self) -> None:
        """Handle the end of the peer's data, which the target kept back."""

    def detach(self) -> None:
        """Go on without the task that serves the connection; it ends."""

    def abort(self) -> None:
        """Free the socket at once, and drop what was not sent."""

    def write(self, data: bytes) -> int:
        """Write *data*, or nothing once the connection is ending.

        Returns:
            Bytes that wait in the transport.
        """

    async def drain(self) -> None:
        """Wait while the transport is paused; return also when the peer is gone."""

    def finish(self, patience: float | None = None) -> None:
        """Write nothing more, and free the socket once the peer has read.

        Args:
            patience: Seconds for the peer's kernel to take the data written; None
                for as long as the peer has to close.
        """


class FrameQuota(Protocol):
    """Quota of what the peer may send, set by the application."""

    def take(self, size: int = 0) -> bool:
        """Count a ping, a pong, or a fragment of *size* bytes; False: one too many.

        Then the application closes the WebSocket, and no further frame is handled.
        """

    def read(self, size: int) -> Awaitable[None] | None:
        """Count *size* bytes before they are handled; what is returned is awaited.

        A message that came in several reads is counted again as a whole.
        """

    def may_read(self, size: int, later: Callable[[], object]) -> bool:
        """Count *size* bytes before they are handled.

        Returns:
            False if they are to wait until *later* is called, once.
        """


class WebSocketStream(WSStream):
    """One WebSocket, from its handshake to its close.

    The scope's state has a callable ``steadwire.limit_frames`` for the application: it
    sets the quota of the frames that the peer sends. Without one there is no limit.

    Invariants of direct writes: there is one event loop, and a frame is one
    ``write`` of a whole frame, so that frames never interleave and arrive in the
    order of the calls, pongs and the close frame included. `_direct` is true exactly
    while wsproto's state is OPEN and frames need no compression; wsproto writes and
    reads every control frame, so its state is always up to date.
    """

    __slots__ = (
        "_flooded",
        "_fragment",
        "_frames",
        "_plain",
        "_queue",
        "_refused",
        "_settings",
        "_tcp",
        "_watcher",
    )

    def __init__(self, settings: ServerSettings, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.buffer.max_length = settings.message_size
        self._settings = settings
        self._watcher: Transport | None = None
        self._tcp: Transport | None = None  # it has this one for itself
        self._queue: Queue[Any] | None = None
        self._plain = True  # frames need no compression
        self._direct = False
        self._refused = False  # the application has begun to refuse the handshake
        self._frames: FrameQuota | None = None
        self._flooded = False  # the peer sent too many frames: nothing more is handled
        self._fragment = 0  # bytes read of a frame that is not the last of its message

    def _limit_frames(self, quota: FrameQuota) -> None:
        self._frames = quota

    async def handle(self, event: Event) -> None:
        """Take an event from the HTTP protocol below."""
        if isinstance(event, Request):
            self._watcher = event.state.connection  # type: ignore[attr-defined]  # put there by TcpConnection
            self._watcher.request_complete(self)
            if event.http_version == "2":
                event = replace(event, headers=joined(event.headers))
            else:
                self._tcp = self._watcher
            await super().handle(event)
            # A copy of the connection's; the application has not run yet.
            self.scope["state"]["steadwire.limit_frames"] = self._limit_frames
            if self.app_put is not None:
                self._queue = self.app_put.__self__  # type: ignore[attr-defined]  # a bound asyncio.Queue.put
            elif self._tcp is not None:
                # Refused; Hypercorn would wait for the peer to close, for ever.
                self._tcp.finish()
            return
        if isinstance(event, StreamClosed) and self._watcher is not None:
            self._watcher.request_over(self)
        if self.closed:
            return
        if isinstance(event, Body | Data):
            if self.handshake.accepted:
                await self.receive(event.data)
            elif not self._refused:
                # Frames before our answer; Hypercorn does not tell the application.
                # A write to a peer that is gone suspends: the application's answer
                # may come meanwhile, and is too late.
                self.closed = True
                await self._send_error_response(400)
                await self._over(1002, "")
        elif isinstance(event, StreamClosed):
            self._direct = False
            self.closed = True
            await self._disconnect(1006, "")

    async def receive(self, data: bytes) -> None:
        """Take bytes from the peer and hand its messages to the application.

        Suspends while the application has not taken earlier messages, so that the
        peer is not read meanwhile. Of the 13 µs that a message of 100 bytes takes on
        its way in and back, 10 are wsproto's parser.
        """
        frames = self._frames
        if frames is not None:
            later = frames.read(len(data))
            if later is not None:
                await later
        if self.closed or self._flooded:
            return
        connection = self.connection
        connection.receive_data(data)
        for event in connection.events():
            kind = type(event)
            if kind is TextMessage or kind is BytesMessage:
                await self._receive_message(event)
            elif kind is Ping or kind is Pong:
                if self._may_send() and kind is Ping:
                    await self._send_frame(event.response())  # type: ignore[attr-defined]  # a Ping
            elif kind is CloseConnection:
                await self._receive_close(event)  # type: ignore[arg-type]  # a CloseConnection
            if self.closed or self._flooded:
                return

    def _may_send(self, size: int = 0) -> bool:
        """Count a frame that is not a message; False: it was one too many."""
        if self._frames is not None and not self._frames.take(size):
            self._flooded = True
        return not self._flooded

    async def _receive_message(self, event: Any) -> None:
        if event.message_finished and self.buffer.value is None:
            data = event.data
            text = type(event) is TextMessage
            message = {
                "type": "websocket.receive",
                "bytes": None if text else data,
                "text": data if text else None,
            }
        else:
            self.buffer.extend(event)
            self._fragment += len(event.data)
            if event.frame_finished:
                size, self._fragment = self._fragment, 0
                if not event.message_finished:
                    self._may_send(size)
            if not event.message_finished:
                return
            message = self.buffer.to_message()
            size = self.buffer.length
            self.buffer.clear()
            if self._frames is not None:
                # It came in several reads, and its work begins with the last of them,
                # however small that is.
                later = self._frames.read(size)
                if later is not None:
                    await later
                if self.closed:
                    return
        assert self._queue is not None
        await self._queue.put(message)

    async def _receive_close(self, event: CloseConnection) -> None:
        if self.connection.state is ConnectionState.REMOTE_CLOSING:
            answer, reason = event.response(), event.reason or ""
        else:
            # The peer sent no close frame: wsproto reports an error in this form.
            reason = REASONS.get(event.code, "protocol error")
            answer = CloseConnection(code=event.code, reason=reason)
        self._direct = False
        await self._send_frame(answer, drain=False)
        await self._end(int(event.code), reason)

    async def _send_close(self, code: int, reason: str) -> None:
        self._direct = False
        await self._send_frame(CloseConnection(code, reason), drain=False)

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Send a message of the application; None says that the application ended.

        The coroutine may be stepped outside a task: it suspends only on the futures
        of a paused transport.

        Raises:
            UnexpectedMessageError: The message does not fit the state.
        """
        if self.closed:
            return
        if self._direct and message is not None and message["type"] == "websocket.send":
            text = message.get("text")
            if text is not None:
                frame = build_frame(TEXT, text)
            else:
                frame = build_frame(BINARY, bytes(message["bytes"]))  # type: ignore[arg-type]  # text is None
            tcp = self._tcp
            if tcp is not None and tcp.write(frame) > HIGH_WATER:
                await tcp.drain()
        elif message is None:
            await self._app_ended()
        elif message["type"] == "websocket.close" and self.is_connected:
            code, reason = int(message.get("code", 1000)), message.get("reason") or ""
            await self._send_close(code, reason)
            self._empty_queue()
            await self._end(code, reason, patience=self._settings.abort_timeout)
        else:
            if not self.is_connected and message["type"] != "websocket.accept":
                self._refused = True
            await super().app_send(message)

    @property
    def is_connected(self) -> bool:
        """True from the application's accept until the close."""
        return self.state is ASGIWebsocketState.CONNECTED

    async def _app_ended(self) -> None:
        # Hypercorn's own command shuts down by cancelling the application.
        cancelled = self.context.terminated.is_set()
        code, reason = (SHUTDOWN.code, SHUTDOWN.reason) if cancelled else (1011, "")
        if self.state is ASGIWebsocketState.HANDSHAKE:
            self._refused = True
            await self._send_error_response(500)
        elif self.is_connected:
            await self._send_close(code, reason)
        self._empty_queue()
        await self._end(code, reason, patience=self._settings.abort_timeout)

    async def _end(
        self, code: int, reason: str, *, patience: float | None = None
    ) -> None:
        """End the connection and tell the application; a close frame is written."""
        if not self.closed:
            self.closed = True
            await self._over(code, reason, patience=patience)

    async def _over(
        self, code: int, reason: str, *, patience: float | None = None
    ) -> None:
        self.state = ASGIWebsocketState.CLOSED
        if self._tcp is not None:
            self._tcp.finish(patience)
        else:
            await self.send(EndData(stream_id=self.stream_id))
            await self.send(StreamClosed(stream_id=self.stream_id))
        await self._disconnect(code, reason)

    async def _disconnect(self, code: int, reason: str) -> None:
        if self._queue is not None:
            await self._queue.put(
                {"type": "websocket.disconnect", "code": code, "reason": reason}
            )

    def _empty_queue(self) -> None:
        # The application takes no more, and the reader may be waiting for room.
        assert self._queue is not None
        try:
            while True:
                self._queue.get_nowait()
        except QueueEmpty:
            pass

    async def _send_frame(self, event: FrameEvent, *, drain: bool = True) -> None:
        try:
            data = self.connection.send(event)
        except LocalProtocolError:
            return  # a pong after our close frame
        if self._tcp is None:
            await self.send(Data(stream_id=self.stream_id, data=bytes(data)))
        elif self._tcp.write(bytes(data)) > HIGH_WATER and drain:
            await self._tcp.drain()

    async def _send_wsproto_event(self, event: FrameEvent) -> None:
        # Hypercorn's own methods send compressed messages and its pings through this.
        await self._send_frame(event)

    async def _accept(self, message: WebsocketAcceptEvent) -> None:
        status_code, headers = _acceptance(
            self.handshake, message.get("subprotocol"), message.get("headers", [])
        )
        headers.extend(self._negotiate(self.handshake.extensions))
        self.state = ASGIWebsocketState.CONNECTED
        await self.send(
            Response(stream_id=self.stream_id, status_code=status_code, headers=headers)
        )
        await self.config.log.access(
            self.scope, {"status": status_code, "headers": []}, time() - self.start_time
        )
        if self._tcp is not None and not self.closed:
            self._tcp.take_over(self)
            self._opened()
        if self.config.websocket_ping_interval is not None:
            self.task_group.spawn(self._send_pings)

    def _negotiate(self, offers: list[str] | None) -> list[tuple[bytes, bytes]]:
        """Make the parser; return the headers that accept the peer's extensions."""
        headers = []
        extension: Extension = SizeLimit(self._settings.message_size)
        if self._settings.deflate and offers:
            deflate = BoundedDeflate(self._settings.message_size)
            accepted = _handshake(offers, deflate)
            if accepted is not None:
                extension = deflate
                headers.append((b"sec-websocket-extensions", accepted))
        self.connection = Connection(ConnectionType.SERVER, [extension])
        self._plain = isinstance(extension, SizeLimit)
        return headers

    def _opened(self) -> None:
        """Begin: the handshake is written, and the connection is this stream's."""
        self._direct = self._plain


def _acceptance(
    handshake: Handshake, subprotocol: str | None, more: Iterable[tuple[bytes, bytes]]
) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Return status and headers, as Hypercorn's, but without extensions and parser."""
    headers = []
    if subprotocol is not None:
        if subprotocol not in (handshake.subprotocols or ()):
            raise ValueError("the client has not offered this subprotocol")
        headers.append((b"sec-websocket-protocol", subprotocol.encode()))
    if handshake.key is not None:
        accept = generate_accept_token(handshake.key)
        headers.append((b"sec-websocket-accept", accept))
    status = 200
    if handshake.http_version == "1.1":
        headers += [(b"upgrade", b"WebSocket"), (b"connection", b"Upgrade")]
        status = 101
    for name, value in more:
        if name == b"sec-websocket-protocol" or name.startswith(b":"):
            raise ValueError(f"an application may not send {name.decode()}")
        headers.append((name, value))
    handshake.accepted = True
    return status, headers


def _handshake(offers: list[str], deflate: BoundedDeflate) -> bytes | None:
    try:
        return server_extensions_handshake(offers, [deflate])
    except (ValueError, IndexError):
        return None  # a parameter is not a number: decline, as for an unknown one

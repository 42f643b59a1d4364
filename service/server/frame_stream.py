"""One WebSocket over HTTP/1.1 on our own frames, in the place of wsproto.

The transport calls `data_received` with what it read: there is no task, queue or await
between the socket and the application that has taken the frames over (`hand_over`).
Its call may end then, and with it the tasks, queues and parsers of the handshake: what
is left of an idle WebSocket is this stream, the connection below and its receiver. One
that has not is given its messages by ASGI, through Hypercorn's queue.

What was read is handled in order, one piece of `_PIECE` bytes in a turn of the event
loop and as its address's share allows. A message that makes the application busy, a
full queue, and a pong that the peer does not take stop that; what waits then is at most
two reads of the transport, for reading is paused as soon as there is something that
waits, and where it waits for the share, more than a piece. Invariants:

F1 Events are handled in the order of their bytes, whatever is waited for in between.
F2 `_waiting` is true exactly while one call of `_go_on` is on its way, or asked for at
   the receiver, the queue, the share or the drain; only then may anything wait.
F3 Nothing is handled after the stream is closed, or flooded.
F4 The end of the peer's data is passed on when all before it was handled; a connection
   that is lost drops what waits.
F5 An event never runs inside a call of the receiver: `_go_on` comes in a turn of its
   own, except from the application's own `receive`.
F6 A receiver is told of the end exactly once, in a turn of its own, whoever ended the
   WebSocket: the peer's close or breach, `close`, the end of its data, a lost socket.
F7 Once `hand_over` has returned True, nothing that comes by ASGI changes anything: not
   the close that Falcon sends when the application's call returns.

Interleavings that could break these, each a test in tests/server/test_frame_stream.py:
data, the end of the data, a close of the application and a lost connection while
something waits; messages that came before the application took the frames over; a
receiver that is busy again when its turn comes; the end before, while and after the
application takes the frames over; two reasons to end in one turn.

With `server.deflate` a client may have messages deflated, each alone (`deflate`). What
is parsed in a turn is less then: `_DEFLATED_PIECE` inflates to 1 MB at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from hypercorn.protocol.events import Event, Request, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState
from hypercorn.typing import ASGISendEvent
from wsproto.events import Event as FrameEvent

from _speedups import (
    FrameParser,
    FrameWriter,
    SharedFrame,
    build_close,
    build_frame,
)
from service.server.deflate import negotiated
from service.server.stream import (
    BINARY,
    HIGH_WATER,
    REASONS,
    TEXT,
    Transport,
    WebSocketStream,
)
from service.settings import ServerSettings

__all__ = ["FrameStream"]

_PIECE = 4096  # bytes handled in one turn: 700 of the smallest frames take some 0.5 ms
_DEFLATED_PIECE = 1024  # the same, where messages may be deflated

# The events of `_speedups.FrameParser`.
_FRAGMENT, _CLOSE, _PING, _PONG = 0x0, 0x8, 0x9, 0xA


class Receiver(Protocol):
    """The application, once it has taken the frames over."""

    def receive(self, message: str | bytes) -> None:
        """Handle one message; it is not called while `busy`."""

    def gone(self, code: int) -> None:
        """Note that the WebSocket is over; called once.

        Args:
            code: Of the close frame of the side that closed; 1006 without one.
        """

    @property
    def busy(self) -> bool:
        """True while it takes no more messages."""

    def on_ready(self, callback: Callable[[], object]) -> None:
        """Call *callback* once, when it may have ceased to be busy."""


class FrameStream(WebSocketStream):
    """One WebSocket, from its handshake to its close.

    The scope's state has this object as ``steadwire.frames``: the application may call
    `hand_over` after it accepted, and `write_message` and `close` from then on.

    Args:
        shared: Returns the frames of the process that are deflated with a window of so
            many bits; 0 for those that are not.
        settings: Of the listener.
        arguments: Of Hypercorn's stream.

    Attributes:
        write_message: Writes a message, or nothing once the WebSocket is closing;
            returns what must be awaited before the next, or None.
    """

    __slots__ = (
        "_at",
        "_data",
        "_draining",
        "_ended",
        "_events",
        "_full",
        "_granted",
        "_handed_over",
        "_parser",
        "_paused",
        "_piece",
        "_read",
        "_receiver",
        "_shared",
        "_sharing",
        "_waiting",
        "_writer",
        "write_message",
    )

    write_message: Callable[[str | bytes], Coroutine[Any, Any, None] | None]

    def __init__(
        self,
        shared: Callable[[int], SharedFrame],
        settings: ServerSettings,
        *arguments: Any,
    ) -> None:
        self._writer: FrameWriter | None = None
        self.write_message = _write_nothing  # until it is accepted
        super().__init__(settings, *arguments)
        self._shared = shared
        self._piece = _PIECE
        self._receiver: Receiver | None = None
        self._handed_over = False  # to a receiver, which is None again at the end
        self._draining: asyncio.Task[None] | None = None  # a pong waits for the peer
        self._data = b""  # that was read; not parsed from `_at` on
        self._at = 0
        self._events: list[tuple[int, Any]] = []  # parsed, and not handled
        self._granted = 0  # bytes of the share that were waited for
        self._read = 0  # bytes that brought the events
        self._waiting = False
        self._full = False  # it is the queue that is waited for
        self._sharing = False  # it is the share that is waited for
        self._paused = False
        self._ended = False  # the peer's data; that was not passed on

    async def handle(self, event: Event) -> None:
        """Take an event from the HTTP protocol below."""
        if isinstance(event, Request):
            self.app = self._making_room(self.app)
            await super().handle(event)
            self.scope["state"]["steadwire.frames"] = self
            return
        await super().handle(event)
        if isinstance(event, StreamClosed):
            self._forget()

    # What the writer writes is what the stock stream calls direct.
    @property
    def _direct(self) -> bool:
        return self._writer is not None and self._writer.open

    @_direct.setter
    def _direct(self, direct: bool) -> None:
        if self._writer is not None:
            self._writer.open = direct

    def _making_room(self, app: Any) -> Any:
        """Return *app* so that what it takes from the queue makes room for more."""

        async def call(scope: Any, receive: Any, send: Any, *others: Any) -> None:
            async def receive_one() -> Any:
                message = await receive()
                if self._full:
                    self._full = False
                    self._go_on()
                return message

            await app(scope, receive_one, send, *others)

        return call

    # For the application.

    def hand_over(self, receiver: Receiver) -> bool:
        """Give *receiver* the messages from here on, and the end, instead of ASGI.

        Those that wait in ASGI's queue already come first.

        Returns:
            False when the WebSocket is over: what came before that is left to ASGI.
        """
        queue = self._queue
        if self.closed or queue is None:
            return False
        early: list[tuple[int, Any]] = []
        while not queue.empty():
            message = queue.get_nowait()
            text = message["text"]
            early.append((BINARY, message["bytes"]) if text is None else (TEXT, text))
        self._events[:0] = early
        self._receiver = receiver
        self._handed_over = True
        self._release()
        if self._full:
            self._full = self._waiting = False
        if not self._waiting:
            self._go_on()
        return True

    def _release(self) -> None:
        """Let go of what only the handshake, and ASGI, needed."""
        self.app_put = self._queue = None
        del self.app, self.buffer, self.handshake, self.scope, self.send
        del self.task_group
        if self._tcp is not None:
            self._tcp.detach()

    async def close(self, code: int, reason: str) -> None:
        """Write a close frame and end the connection; for a receiver."""
        if not self.closed:
            await self._send_close(code, reason)
            await self._end(code, reason, patience=self._settings.abort_timeout)

    # From the transport.

    async def receive(self, data: bytes) -> None:
        """Take bytes that were read before the connection was this stream's."""
        self.data_received(data)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the peer."""
        if self.closed or self._flooded:
            return
        if self._at < len(self._data):
            data = self._data[self._at :] + data
        self._data, self._at = data, 0
        if self._waiting:
            self._pause()
        else:
            self._work()

    def eof_received(self) -> bool:
        """Take the end of the peer's data; return whether it is passed on now."""
        self._ended = self._waiting and not self.closed
        return not self._ended

    def peer_gone(self) -> None:
        """Note that the peer sends nothing more, or is lost."""
        self._direct = False
        if not self.closed:
            self.closed = True
            self._tell(1006)
        self._forget()

    def _tell(self, code: int) -> None:
        """Tell the receiver of the end, once."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            asyncio.get_running_loop().call_soon(receiver.gone, code)

    def _work(self) -> None:
        """Handle what was read until something has to be waited for."""
        try:
            self._handle_data()
        except Exception:
            if self._tcp is not None:
                self._tcp.abort()
            raise  # to the loop, which logs it
        if self.closed or self._flooded:
            self._forget()
        elif self._at < len(self._data):
            self._pause()
        elif not self._waiting:
            self._data, self._at = b"", 0
            if self._paused:
                self._resume()

    def _handle_data(self) -> None:
        if self._events:
            self._handle_parsed()
            if self._waiting or self.closed or self._flooded:
                return
        if self._at == len(self._data) or not self._parse():
            return
        self._handle_parsed()
        if self._at < len(self._data) and not (
            self._waiting or self.closed or self._flooded
        ):
            # There is more. A flood of tiny frames must not hold the event loop.
            self._soon()

    def _parse(self) -> bool:
        """Parse a piece of what was read; False if it waits for its share."""
        size = len(self._data) - self._at
        most = self._granted or self._piece
        if size > most:
            size = most
        frames = self._frames
        if frames is not None and not self._granted:
            self._granted = size
            if not frames.may_read(size, self._go_on):
                self._waiting = self._sharing = True
                return False
        self._granted = 0
        start, self._at = self._at, self._at + size
        piece = self._data
        if size != len(piece):
            piece = piece[start : self._at]
        self._read = size
        self._events = self._parser.feed(piece)
        return True

    def _handle_parsed(self) -> None:
        events, self._events = self._events, []
        for place, (kind, value) in enumerate(events, 1):
            if _FRAGMENT < kind < _CLOSE:
                if len(value) > self._read and not self._may_handle(len(value)):
                    self._events = events[place - 1 :]
                    return
                receiver = self._receiver
                if receiver is None:
                    self._queue_up(value)
                else:
                    receiver.receive(value)
                    if receiver.busy:
                        self._waiting = True
                        receiver.on_ready(self._soon)
            elif kind == _FRAGMENT:
                self._may_send(value)
            elif kind == _PING:
                if self._may_send():
                    self._pong(value)
            elif kind == _PONG:
                self._may_send()
            elif kind == _CLOSE:
                self._close(*value)
            else:  # a breach
                self._close(value, REASONS[value])
            if self._waiting or self.closed or self._flooded:
                self._events = events[place:]
                return

    def _may_handle(self, size: int) -> bool:
        """Count a message that came in several reads, as a whole.

        Its work begins with the last of them, however small that is.
        """
        self._read = size  # it is counted once
        if self._frames is None or self._frames.may_read(size, self._go_on):
            return True
        self._waiting = True
        return False

    def _queue_up(self, message: str | bytes) -> None:
        assert self._queue is not None
        text = isinstance(message, str)
        self._queue.put_nowait(
            {
                "type": "websocket.receive",
                "bytes": None if text else message,
                "text": message if text else None,
            }
        )
        self._waiting = self._full = self._queue.full()

    def _pong(self, payload: bytes) -> None:
        tcp = self._tcp
        if tcp is not None and tcp.write(build_frame(_PONG, payload)) > HIGH_WATER:
            self._waiting = True
            self._draining = asyncio.get_running_loop().create_task(self._drain(tcp))

    async def _drain(self, tcp: Transport) -> None:
        await tcp.drain()
        self._draining = None
        self._go_on()

    def _close(self, code: int, reason: str) -> None:
        """Answer a close frame or a breach, and end the connection."""
        self._direct = False
        self.closed = True
        self.state = ASGIWebsocketState.CLOSED
        if self._tcp is not None:
            self._tcp.write(build_close(code, reason))
            self._tcp.finish()
        if self._handed_over:
            self._tell(code)
        elif self._queue is not None:
            # There is room: messages are handled only while there is.
            self._queue.put_nowait(
                {"type": "websocket.disconnect", "code": code, "reason": reason}
            )

    # Waiting.

    def _soon(self) -> None:
        """Go on in the next turn of the event loop."""
        self._waiting = True
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._waiting = self._sharing = False
        if self.closed or self._flooded:
            return
        receiver = self._receiver
        if receiver is not None and receiver.busy:
            self._waiting = True
            receiver.on_ready(self._soon)
            return
        self._work()
        if self._ended and not self._waiting and self._tcp is not None:
            self._ended = False
            self._tcp.pass_eof()

    def _pause(self) -> None:
        # Most that waits for its share is one message, which has it in a turn or two:
        # to stop reading and to begin again are two calls of the system.
        little = self._sharing and len(self._data) - self._at <= _PIECE
        if self._tcp is not None and not little:
            self._paused = True
            self._tcp.pause_reading()

    def _resume(self) -> None:
        if self._paused and self._tcp is not None:
            self._paused = False
            self._tcp.resume_reading()

    def _forget(self) -> None:
        self._data, self._at = b"", 0
        self._events = []
        self._resume()

    # Of the stock stream: what it does with wsproto.

    def _negotiate(self, offers: list[str] | None) -> list[tuple[bytes, bytes]]:
        settings = self._settings
        answer = negotiated(offers) if settings.deflate and offers else None
        self._parser = FrameParser(settings.message_size, answer is not None)
        assert self._tcp is not None  # HTTP/1.1
        socket, drain = self._tcp.socket, self._tcp.drain
        headers = []
        window = 0
        if answer is not None:
            accepted, window = answer
            headers.append((b"sec-websocket-extensions", accepted))
            self._piece = _DEFLATED_PIECE
        self._writer = FrameWriter(self._shared(window), socket, HIGH_WATER, drain)
        self.write_message = self._writer.write
        return headers

    def _opened(self) -> None:
        self._direct = True
        if self._tcp is not None:
            self._tcp.divert(self)

    async def _disconnect(self, code: int, reason: str) -> None:
        if self._handed_over:
            self._tell(code)
        else:
            await super()._disconnect(code, reason)

    async def _send_close(self, code: int, reason: str) -> None:
        self._direct = False
        if self._tcp is not None:
            self._tcp.write(build_close(code, reason))

    async def _send_wsproto_event(self, event: FrameEvent) -> None:
        # Hypercorn's pings, if its configuration has them.
        if self._tcp is not None and self._direct:
            self._tcp.write(build_frame(_PING, b""))

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Send a message of the application; None says that the application ended."""
        if self._handed_over:
            return
        if self._direct and message is not None and message["type"] == "websocket.send":
            text = message.get("text")
            # Without a text there are bytes.
            data = bytes(message["bytes"]) if text is None else text  # type: ignore[arg-type]
            waits = self.write_message(data)
            if waits is not None:
                await waits
            return
        await super().app_send(message)


def _write_nothing(message: str | bytes) -> None:
    pass

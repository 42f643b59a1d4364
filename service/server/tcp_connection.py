"""One TCP connection: Hypercorn's, with socket options and a close in bounded time."""

from __future__ import annotations

import asyncio
import enum
import socket
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, cast

import h11
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState

from _speedups import SocketWriter
from service.core.address_shares import SHARE
from service.core.client_address import key_of
from service.core.errors import describe
from service.server.accepted_socket import prepare
from service.server.diversion import DISCARD, Diversion
from service.server.http1 import REQUESTS
from service.server.kernel_buffers import undelivered, unread
from service.server.plain_handshake import PlainHandshake, fits, plain_head
from service.server.stream import DirectReader, WebSocketStream
from service.server.tracker import ConnectionTracker
from service.settings import ServerSettings

__all__ = ["TcpConnection"]

# Seconds that a peer has to close after our close frame reached it. Below the 2 s
# after which the descriptor has to be free.
_LINGER = 1.5

# Seconds between two queries for what the kernel has not delivered: the first, doubled
# up to the last. When a network fails, thousands of connections end at once.
_FIRST_POLL = 0.05
_LAST_POLL = 1.0

_READ = 4096  # bytes of one read: 700 of the smallest frames take some 5 ms

_HEAD = 5.0  # s for the whole head of a request
_BODY = 5.0  # s between two looks at how fast a body arrives
_BODY_RATE = 1024  # bytes a second, the least
_REQUEST = 60.0  # s from the head to the end of the body, and as many to the answer

_SILENCE = 60.0  # s in which a stream must pass a byte in one of the directions

_TIMEOUT = b"HTTP/1.1 408 \r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _State(dict[str, Any]):
    """The scope's state; as an attribute, the connection, for our own streams."""

    __slots__ = ("connection",)

    connection: TcpConnection


class _Phase(enum.Enum):
    """Activity of a connection; each but the last is bounded in time."""

    HEAD = "waits for the head of a request, or the rest of it"
    BODY = "waits for the rest of a body"
    ANSWER = "a whole request is under way"
    IDLE = "waits for the next request"
    STREAM = "a request, or the answer to one, is a stream"
    WEBSOCKET = "a WebSocket has taken it over"


class TcpConnection(TCPServer):
    """One accepted connection, until its descriptor is free.

    The scope's state has two callables for the application: ``steadwire.abort`` frees
    the socket at once, and drops what the peer has not read; ``steadwire.progress``
    returns the bytes written so far, and those that the peer's kernel acknowledged.

    A task serves it. A WebSocket whose application goes on without a task needs none
    here either (`detach`): then the transport's own calls end the connection, in the
    same order: the stream is told, what was written is delivered within its time, the
    transport is closed, and only what is lost is removed from the tracker. `_detached`
    is set once, in a turn in which all that was read has been given to the stream: the
    task waits for data, or has read a plain handshake alone (`_shake_hands`).

    Over HTTP/2 a connection with several requests is in the phase of the furthest; with
    a stream among them, it is bounded as the stream is: by `_SILENCE`.

    Attributes:
        stream: The WebSocket that took the connection over, if one did.
        reserved: Whether it was accepted for the health endpoints alone.
        peer: The key of the other end's address.
        trusted: Whether the other end is a trusted proxy.
        socket: Writes to it, and counts that.
    """

    __slots__ = (
        "_body_until",
        "_calling",
        "_counted",
        "_deadline",
        "_detached",
        "_diversion",
        "_finishing",
        "_flushed",
        "_handling",
        "_left",
        "_passed",
        "_peer_ended",
        "_phase",
        "_poll",
        "_raw",
        "_reading",
        "_received",
        "_requests",
        "_streams",
        "_timer",
        "_tracker",
        "_transport",
        "peer",
        "reserved",
        "socket",
        "stream",
        "trusted",
    )

    def __init__(
        self,
        tracker: ConnectionTracker,
        app: Any,
        loop: asyncio.AbstractEventLoop,
        config: Any,
        context: Any,
        state: Any,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        shared = _State(state)
        shared["steadwire.abort"] = self.abort
        shared["steadwire.progress"] = self.progress
        shared.connection = self
        # Instead of Hypercorn's, which makes a lock and a task for methods of its own.
        self.app, self.config, self.context, self.loop = app, config, context, loop
        self.state = cast(Any, shared)
        self.reader, self.writer = reader, writer
        name = writer.get_extra_info("peername")
        host = name[0] if isinstance(name, tuple) else None
        self.peer = key_of(host)
        self.trusted = tracker.proxies.trusts(host)
        self.reserved = False
        self.stream: WebSocketStream | None = None
        self.protocol: Any = None  # nothing was read
        self._phase = _Phase.HEAD
        self._requests: dict[object, bool] = {}  # by stream: is the body there?
        self._streams: dict[object, None] = {}  # of those requests
        self._passed = (0, 0)  # bytes received and written at the last look at a stream
        self._handling = False
        self._received = 0  # bytes of requests
        self._counted = 0  # those of them at the last look at a body
        self._body_until = 0.0
        self._tracker = tracker
        self._transport = cast(asyncio.Transport, writer.transport)
        self._diversion: Diversion | None = None
        self._raw: socket.socket = writer.get_extra_info("socket")
        self.socket = SocketWriter(self._transport, self._raw.fileno())
        self._reading = False  # a task waits for data
        self._calling = False  # the task calls the application
        self._left = False  # which has asked meanwhile that it ends
        self._detached = False  # there is no task, or it ends
        self._peer_ended = False  # and the stream was told
        self._finishing = False
        self._flushed = False
        self._deadline = 0.0
        self._poll = _FIRST_POLL
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve the connection; return when its socket is closed."""
        if not self._tracker.accept(self, self._raw.fileno()):
            self.abort()
            return
        try:
            await self._serve()
        except OSError:
            pass  # the peer reset the connection before we had asked its address
        except Exception as error:
            # Hypercorn raises on some malformed requests. Strangers can send them.
            self.refuse("malformed", **describe(error))
            self.abort()
        except asyncio.CancelledError:
            # Hypercorn's own command cancels when its time for a shutdown is over.
            self.finish()
        finally:
            if not self._detached:
                await self._close()
                self._tracker.remove(self)
                self.stream = None
            # These refer to each other: only the garbage collector would free them.
            self.state.clear()
            self._requests.clear()
            self._streams.clear()
            self.protocol = None
            if self._detached and self._diversion is not None:
                self._diversion.forget_task()

    async def _serve(self) -> None:
        client, server = prepare(self._raw, self._tracker.settings)
        tls = self.writer.get_extra_info("ssl_object")
        alpn = tls.selected_alpn_protocol() if tls is not None else "http/1.1"
        if self.reserved and alpn == "h2":
            self.abort()  # its requests have no target that we could see
        self._enter(_Phase.HEAD)
        data = b""
        if alpn != "h2":
            data = await self._read()
            head = self._plain_head(data)
            if head is not None:
                ends = ConnectionState(self.state), tls is not None, client, server
                handshake = PlainHandshake(data, self, self.app, self.context, ends)
                self._received = len(data)
                await self._shake_hands(handshake, *head)
                await self._end()
                return
        async with TaskGroup(self.loop) as task_group:
            self.protocol = ProtocolWrapper(
                self.app,
                self.config,
                self.context,
                task_group,
                ConnectionState(self.state),
                tls is not None,
                client,
                server,
                self.protocol_send,
                alpn,
            )
            await self.protocol.initiate()
            await self._handle_data(data or await self._read())
            await self._end()

    async def _end(self) -> None:
        """End the connection, unless it goes on without this task."""
        if not self._detached:
            # The descriptor does not wait for the application to end.
            self.finish(self._tracker.settings.abort_timeout)
            self.writer.close()

    def _plain_head(
        self, data: bytes
    ) -> tuple[bytes, list[tuple[bytes, bytes]]] | None:
        # At `_READ` bytes there may be more.
        if self.reserved or len(data) == _READ or not fits(self.config):
            return None
        return plain_head(data)

    async def _shake_hands(self, handshake: PlainHandshake, *head: Any) -> None:
        """Serve a WebSocket with a plain handshake until it is over, or detached.

        This task calls the application. Only where that call does not end in this turn
        does another task read meanwhile. So what was read is all that has come, and a
        connection that is handed over within the turn is detached at once.
        """
        self.protocol = handshake
        self._handling = True
        later = self.turn(SHARE // REQUESTS)
        if later is not None:
            await later
        reading: asyncio.Task[None] | None = None

        def read() -> None:
            nonlocal reading
            reading = group.create_task(self._read_on())

        async with asyncio.TaskGroup() as group:
            soon = self.loop.call_soon(read)
            self._calling = True
            try:
                await handshake.begin(*head)
                self._handling = False
                await handshake.call()
            finally:
                self._calling = False
                soon.cancel()
            if self._left and reading is None and later is None and not self._ends:
                self._detached = True
                return
            if self._left:
                self.loop.call_soon(self._detach)
            if reading is None:
                await self._read_on()

    async def _read_on(self) -> None:
        await self._handle_data(await self._read())

    @property
    def _http(self) -> Any:
        """The reader of requests; None while nothing was read, or h11 is not needed."""
        return self.protocol.protocol if self.protocol is not None else None

    @property
    def settings(self) -> ServerSettings:
        """Those of the listener."""
        return self._tracker.settings

    @property
    def draining(self) -> bool:
        """Whether the process shuts down."""
        return self._tracker.draining

    def refuse(self, cause: str, **details: str) -> None:
        """Count this connection as one that was cut off."""
        self._tracker.refuse(cause, self, **details)

    def turn(self, size: int) -> Awaitable[None] | None:
        """Take *size* bytes of its address's share of this turn of the event loop.

        A trusted proxy's connections are those of many addresses, and have no limit.

        Returns:
            What must be awaited before the bytes are handled; None for nothing.
        """
        return None if self.trusted else self._tracker.shares.turn(self.peer, size)

    async def _read(self) -> bytes:
        """Return what comes next; nothing at the end, or when the peer is lost."""
        timeout = self.config.read_timeout
        size = DISCARD if self._finishing else _READ
        self._reading = True  # it is false again before anything else runs
        try:
            if timeout is None:
                return await self.reader.read(size)
            return await asyncio.wait_for(self.reader.read(size), timeout)
        except (OSError, TimeoutError):
            return b""
        finally:
            self._reading = False

    async def _handle_data(self, data: bytes) -> None:
        """Handle *data*, and all that comes after it."""
        discarded = 0
        while data:
            if self._finishing:
                # Unread data would make closing destroy what we wrote.
                discarded += len(data)
                if discarded > DISCARD:
                    await self._ignore()
                    break
            elif self.stream is not None:
                # Diverted, it takes all at once: what is read now comes after it.
                await self.stream.receive(data)
            else:
                await self._handle_http(data)
            if len(data) == _READ and self._diversion is None:
                # There is more. A flood of tiny frames must not hold the event loop.
                await asyncio.sleep(0)
            data = await self._read()
        if not self._detached:
            await self.protocol.handle(Closed())

    async def _ignore(self) -> None:
        """Read nothing more; return when the connection is closed."""
        self.pause_reading()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def _handle_http(self, data: bytes) -> None:
        self._received += len(data)
        self._handling = True
        await self.protocol.handle(RawData(data))
        self._handling = False
        if self._phase is _Phase.IDLE and isinstance(
            self.protocol.protocol, H11Protocol
        ):
            self._enter(_Phase.HEAD)

    async def protocol_send(self, event: Event) -> None:
        """Carry out an event of the HTTP protocol."""
        if isinstance(event, RawData):
            # One write is one whole frame or message, hence no lock.
            self.write(event.data)
            await self.drain()
        elif isinstance(event, Closed):
            # This does not wait: the caller may be the task that reads.
            self.finish(self._tracker.settings.abort_timeout)

    def write(self, data: bytes) -> int:
        """Write *data*, or nothing once the connection is ending.

        Returns:
            Bytes that wait in the transport.
        """
        return self.socket.write(data)

    def progress(self) -> tuple[int, int]:
        """Return the bytes written, and those that the peer's kernel acknowledged.

        Under TLS the first are plain and the rest are not: a few per cent.
        """
        written = self.socket.written
        return written, max(0, written - self._undelivered())

    async def drain(self) -> None:
        """Wait while the transport is paused; return also when the peer is gone."""
        # The task that reads meets a lost connection too, and reports it.
        with suppress(OSError):
            await self.writer.drain()

    def finish(self, patience: float | None = None) -> None:
        """Write nothing more, and free the socket once the peer has read.

        Data from the peer is read and thrown away: closing a socket that has unread
        data resets the connection, and a reset destroys what the peer has not read
        yet, the close frame too.

        Args:
            patience: Seconds for the peer's kernel to take the data written, by
                default `_LINGER`; then the connection is aborted. From that moment
                the peer has `_LINGER` to close.
        """
        if self._finishing:
            return
        self._finishing = True
        self.socket.open = False
        self._stop_timer()
        if self._transport.is_closing():
            return
        self._end_diversion()
        if self._phase is not _Phase.WEBSOCKET:
            self._tracker.waits(self)
        if self._transport.can_write_eof():
            with suppress(OSError):  # asyncio's raises when the peer has reset it
                self._transport.write_eof()
        self._deadline = self.loop.time() + (_LINGER if patience is None else patience)
        self._check_delivery()

    def _check_delivery(self) -> None:
        now = self.loop.time()
        if not self._flushed and self._undelivered() == 0:
            self._flushed = True
            self._deadline = min(self._deadline, now + _LINGER)
        if now >= self._deadline:
            self.abort()
            return
        wait = self._deadline - now
        if not self._flushed:
            wait = min(wait, self._poll)
            self._poll = min(2 * self._poll, _LAST_POLL)
        self._timer = self.loop.call_later(wait, self._check_delivery)

    def _undelivered(self) -> int:
        waiting: int = self._transport.get_write_buffer_size()
        return waiting + undelivered(self._raw)

    def abort(self) -> None:
        """Free the socket at once, and drop what was not sent."""
        self._finishing = True
        self.socket.open = False
        self._stop_timer()
        self._transport.abort()

    async def _close(self) -> None:
        self.finish(self._tracker.settings.abort_timeout)
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # closed all the same
        finally:
            self._stop_timer()

    def request_begun(self, stream: object) -> None:
        """Note that the head of a request is there."""
        self._requests[stream] = False
        if self._phase is not _Phase.ANSWER:
            self._body_until = self.loop.time() + _REQUEST
            self._enter(_Phase.BODY)

    def request_complete(self, stream: object) -> None:
        """Note that the body is there too, or that there is none."""
        self._requests[stream] = True
        self._enter(_Phase.ANSWER)

    def request_streams(self, stream: object) -> None:
        """Note that a request, or its answer, is a stream: its time has no end."""
        if stream in self._requests:
            self._streams[stream] = None
            self._enter(_Phase.STREAM)

    def request_over(self, stream: object) -> None:
        """Note that the request is answered, or given up; harmless when it was."""
        if self._requests.pop(stream, None) is None:
            return
        if stream in self._streams:
            del self._streams[stream]
            if self._requests and not self._streams:
                self._enter(_Phase.ANSWER)
                return
        if not self._requests:
            self._enter(_Phase.IDLE)
        elif self._phase is _Phase.ANSWER and not any(self._requests.values()):
            self._body_until = self.loop.time() + _REQUEST
            self._enter(_Phase.BODY)

    def _enter(self, phase: _Phase) -> None:
        if self._finishing or self._phase is _Phase.WEBSOCKET:
            return
        if self._streams:
            phase = _Phase.STREAM
        self._phase = phase
        self._stop_timer()
        if phase is _Phase.HEAD:
            self._timer = self.loop.call_later(_HEAD, self._time_out)
        elif phase is _Phase.BODY:
            self._counted = self._received
            self._timer = self.loop.call_later(_BODY, self._check_body)
        elif phase is _Phase.ANSWER:
            self._timer = self.loop.call_later(_REQUEST, self._check_answer)
        elif phase is _Phase.STREAM:
            self._passed = self._received, self.socket.written
            self._timer = self.loop.call_later(_SILENCE, self._check_stream)
        elif phase is _Phase.IDLE:
            self._timer = self.loop.call_later(self.settings.keep_alive, self.close)
            if self.draining:  # the head of that answer was there before
                self.close()
        if phase in (_Phase.HEAD, _Phase.BODY, _Phase.IDLE):
            self._tracker.waits(self)
        else:
            self._tracker.works(self)

    def _check_body(self) -> None:
        # While the application does not take it, the peer cannot send more.
        blocked = self._handling
        slow = self._received - self._counted < _BODY * _BODY_RATE
        if not blocked and (slow or self.loop.time() >= self._body_until):
            self._time_out()
            return
        self._counted = self._received
        self._timer = self.loop.call_later(_BODY, self._check_body)

    def _check_answer(self) -> None:
        http = self._http
        if isinstance(http, H2Protocol) and any(
            isinstance(stream, WebSocketStream) and stream.is_connected
            for stream in http.streams.values()
        ):
            # The session ends its WebSocket; the requests beside it are few.
            self._timer = self.loop.call_later(_REQUEST, self._check_answer)
        else:
            self.finish()

    def _check_stream(self) -> None:
        if (self._received, self.socket.written) == self._passed:
            self.finish()
        else:
            self._enter(_Phase.STREAM)

    def _time_out(self) -> None:
        """Give a request up that did not arrive in time."""
        http = self._http
        if isinstance(self.protocol, PlainHandshake) or (
            self._received
            and isinstance(http, H11Protocol)
            and http.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        ):
            self.write(_TIMEOUT)
        self.finish()

    def close(self) -> None:
        """Finish the connection, unless a request is there or on its way to us."""
        if (
            self._phase not in (_Phase.HEAD, _Phase.IDLE)
            or self._transport.is_closing()
        ):
            return
        # What was read before this reaches the protocol within this turn of the loop;
        # what comes after it stays with the kernel, where it can be seen.
        self._transport.pause_reading()
        self.loop.call_soon(self._close_unless_asked)

    def _close_unless_asked(self) -> None:
        if self._finishing or self._transport.is_closing():
            return
        self._transport.resume_reading()
        if self._phase not in (_Phase.HEAD, _Phase.IDLE):
            return
        if self.has_unread() or self._handling:  # the protocol may hold a request, too
            self._stop_timer()
            self._timer = self.loop.call_later(_HEAD, self.close)
            return
        http = self._http
        if isinstance(http, H2Protocol):
            http.connection.close_connection()
            self.write(http.connection.data_to_send())
        self.finish()

    def has_unread(self) -> bool:
        """Return whether the kernel has bytes of the peer that were not read."""
        return unread(self._raw)

    def take_over(self, stream: WebSocketStream) -> None:
        """Give *stream* the bytes that are read from here on."""
        self.stream = stream
        self._enter(_Phase.WEBSOCKET)

    def divert(self, target: DirectReader) -> None:
        """Give *target* what is read, without a task, until the connection ends."""
        # TLS encrypts in the transport.
        plain = self.socket.direct = self.writer.get_extra_info("ssl_object") is None
        reads = self._tracker.reads if plain else None
        self._diversion = Diversion(target, self, self._transport, reads)

    def detach(self) -> None:
        """Go on without the task; the application's call is about to end."""
        # It may have something to do in this turn.
        if self._calling:
            self._left = True
        else:
            self.loop.call_soon(self._detach)

    @property
    def _ends(self) -> bool:
        """True when the task ends the connection, or `lost` was or will be called."""
        return (
            self._finishing
            or self.reader.at_eof()
            or bool(self._transport.is_closing())
        )

    def _detach(self) -> None:
        if self._detached or self._ends:
            return
        if self._reading:
            self._detached = True
            self.reader.feed_eof()  # which the task waits for
        else:
            self.loop.call_soon(self._detach)

    def peer_ended(self) -> None:
        """Note that the peer sends nothing more."""
        if not self._detached or self._peer_ended:
            return
        self._peer_ended = True
        assert self._diversion is not None
        self._diversion.target.peer_gone()
        # The descriptor does not wait for the application to end.
        if self._finishing or self._transport.is_closing() or self._undelivered():
            self.finish(self._tracker.settings.abort_timeout)
        else:  # there is nothing to deliver
            self._finishing = True
            self.socket.open = self.socket.direct = False
            self._stop_timer()
            self._diversion.discard()
        self.writer.close()

    def lost(self) -> None:
        """Note that the transport is closed."""
        if self._detached:
            self.peer_ended()
            self._stop_timer()
            self._tracker.remove(self)
            self.stream = self._diversion = None

    def _end_diversion(self) -> None:
        """Let the reader have what comes: it throws it away."""
        if self._diversion is not None and self._detached:
            self.socket.direct = False
            self._diversion.discard()
        elif self._diversion is not None:
            self.socket.direct = False
            diversion, self._diversion = self._diversion, None
            diversion.end()

    def pause_reading(self) -> None:
        """Read nothing; harmless when it is so."""
        if self._diversion is not None:
            self._diversion.pause_reading()
        elif not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again; harmless when it is so."""
        if self._diversion is not None:
            self._diversion.resume_reading()
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def pass_eof(self) -> None:
        """Handle the end of the peer's data, which the target kept back."""
        if self._diversion is not None:
            self._diversion.pass_eof()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

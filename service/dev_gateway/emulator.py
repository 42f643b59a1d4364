"""Emulator: an API Gateway WebSocket API on one port of the loopback.

    ws://127.0.0.1:PORT/STAGE                      clients
    http://127.0.0.1:PORT/STAGE/@connections/ID    POST, GET and DELETE, as boto3's
                                                   apigatewaymanagementapi sends them
    http://127.0.0.1:PORT/2015-03-31/functions/…   asynchronous invocations of the
                                                   function, as boto3's lambda does

What it keeps of the service (each has a test):

* `$connect` is handled before the socket exists: a POST from inside it is 410. Any
  status but 2xx refuses the handshake with that status.
* Messages of one client are concurrent invocations without an order. The answer to one
  is dropped; one that fails sends the gateway's own JSON to the client.
* `$disconnect` is told after the close, may be lost, and may overtake a message.
* A binary message closes with 1003, a frame over 32 KiB or a message over 128 KiB with
  1009. A socket without a message either way for 10 minutes, or 2 hours old, is closed
  with 1001; times are the given clock's.
* A POST is text: bytes that are not UTF-8 become U+FFFD. It answers 200 once the bytes
  are written, 410 for no such connection, 413 over 128 KiB, 429 over the rate or when
  the client does not read, 403 without a signature.
* An asynchronous invocation is accepted with 202 and starts later. One that fails is
  tried again, at most twice more.
* `Faults` adds what happens at random. After an answered DELETE nothing reaches the
  client any more, late POSTs included.

Where the service's behaviour is not documented this is strict: a ping frame of a client
does not keep an idle connection.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import unquote

import h11
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, TextMessage
from wsproto.events import Event as FrameEvent
from wsproto.utilities import RemoteProtocolError

from service.core.ports import Clock, Timer
from service.core.rate_limits import Bucket, Rate
from service.dev_gateway.events import (
    Connected,
    Event,
    connect_event,
    disconnect_event,
    message_event,
)
from service.dev_gateway.faults import Faults, Post

__all__ = ["Answer", "Gateway", "Integration", "IntegrationError", "Quotas"]

RETRIES = (1.0, 2.0)  # s until a failed invocation is tried again; AWS: 60 and 120

_FUNCTIONS = "/2015-03-31/functions/"

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


@dataclass(frozen=True, slots=True)
class Answer:
    """What an integration answered.

    Attributes:
        status: HTTP status.
        headers: Those for the client's handshake, names in lower case.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)


class IntegrationError(Exception):
    """The integration gave no answer."""


class Integration(Protocol):
    """The application behind the gateway."""

    async def __call__(self, event: Event) -> Answer:
        """Handle an event of the Lambda proxy integration, or one invoked by itself.

        Raises:
            IntegrationError: There is no answer.
        """


@dataclass(frozen=True, slots=True)
class Quotas:
    """The service's quotas.

    Attributes:
        frame: Bytes of a frame from a client.
        message: Bytes of a message, either way.
        idle: Seconds without a message.
        age: Seconds that a connection lives.
        timeout: Seconds that an integration may take.
        posts: Calls of `@connections` a second.
        unread: Bytes that wait for a client that does not read; more is 429.
    """

    frame: int = 32 * 1024
    message: int = 128 * 1024
    idle: float = 600.0
    age: float = 7200.0
    timeout: float = 29.0
    posts: Rate = field(default_factory=lambda: Rate(rate=10_000.0, burst=5_000.0))
    unread: int = 256 * 1024


class Gateway:
    """One API with one stage.

    Args:
        integration: The application.
        clock: For all times of `Quotas` and `Faults`.
        quotas: The service's, or smaller ones.
        faults: What goes wrong.
        stage: Name of the stage.

    Attributes:
        port: Where it listens; set by `run`.
        disconnects_lost: How many `$disconnect` the application was not told.
    """

    def __init__(
        self,
        integration: Integration,
        clock: Clock,
        quotas: Quotas | None = None,
        faults: Faults | None = None,
        stage: str = "test",
    ) -> None:
        self.port = 0
        self.disconnects_lost = 0
        self.integration = integration
        self.clock = clock
        self.quotas = quotas or Quotas()
        self.faults = faults or Faults()
        self.stage = stage
        self.api = secrets.token_hex(5)
        self._closing = False
        self._sockets: dict[str, _Socket] = {}
        self._posts = Bucket(clock.now())
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    @property
    def url(self) -> str:
        """Address for clients."""
        return f"ws://127.0.0.1:{self.port}/{self.stage}"

    @property
    def endpoint(self) -> str:
        """Address for boto3's ``apigatewaymanagementapi``."""
        return f"http://127.0.0.1:{self.port}/{self.stage}"

    @property
    def connections(self) -> list[str]:
        """Ids of the open sockets."""
        return list(self._sockets)

    @asynccontextmanager
    async def run(self, port: int = 0) -> AsyncIterator[Gateway]:
        """Serve on *port* of the loopback, or a free one, until the block ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._closing = True
            server.close()
            links = dict(self._links)
            for writer in links:
                writer.transport.abort()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, *links.values(), return_exceptions=True)

    def request_id(self) -> str:
        """Return an id for an invocation."""
        return base64.b64encode(secrets.token_bytes(11)).decode()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* beside everything else."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sleep(self, seconds: float) -> None:
        """Wait on the clock."""
        if seconds <= 0.0:
            return
        done = asyncio.get_running_loop().create_future()
        timer = self.clock.call_at(self.clock.now() + seconds, lambda: _set(done))
        try:
            await done
        finally:
            timer.cancel()

    async def invoke(self, event: Event) -> Answer:
        """Call the integration within the quota's time.

        Raises:
            IntegrationError: There is no answer in time, or none at all.
        """
        call = asyncio.ensure_future(self.integration(event))
        late = asyncio.ensure_future(self.sleep(self.quotas.timeout))
        try:
            await asyncio.wait({call, late}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            call.cancel()
            raise
        finally:
            late.cancel()
        if call.done():
            return call.result()
        self.spawn(_ignore(call))  # it goes on by itself, as a function does
        raise IntegrationError("timeout")

    def opened(self, socket: _Socket) -> None:
        """Know *socket* from now on."""
        self._sockets[socket.about.id] = socket

    def closed(self, socket: _Socket, code: int, reason: str) -> None:
        """Forget *socket*, and tell the application unless that is lost."""
        if self._sockets.pop(socket.about.id, None) is None or self._closing:
            return
        if self.faults.loses_disconnect():
            self.disconnects_lost += 1
            return
        self.spawn(self._disconnect(socket.about, code, reason))

    async def _disconnect(self, about: Connected, code: int, reason: str) -> None:
        await self.sleep(self.faults.delays())
        wall = self.clock.wall()
        event = disconnect_event(about, code, reason, self.request_id(), wall)
        with suppress(IntegrationError):
            await self.invoke(event)

    # One TCP connection: a WebSocket, or requests one after the other.

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links[writer] = task
        with suppress(OSError, h11.RemoteProtocolError):
            await self._requests(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        del self._links[writer]

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        http = h11.Connection(h11.SERVER)
        while (found := await _request(http, reader)) is not None:
            request, body = found
            if _header(request, b"upgrade").lower() == b"websocket":
                await self._websocket(request, http.trailing_data[0], reader, writer)
                return
            answer = await self._callback(request, body)
            if answer is None:  # the caller gets none
                return
            status, headers, content = answer
            writer.write(_response(http, status, headers, content))
            await writer.drain()
            if http.our_state is h11.MUST_CLOSE:
                return
            http.start_next_cycle()

    async def _websocket(
        self,
        request: h11.Request,
        rest: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        path, _, query = request.target.decode().partition("?")
        if path.strip("/") != self.stage:
            writer.write(_refusal(403))
            await writer.drain()
            return
        headers = [
            (n.decode(), v.decode("latin-1")) for n, v in request.headers.raw_items()
        ]
        about = Connected(
            id=base64.b64encode(secrets.token_bytes(11)).decode(),
            api=self.api,
            stage=self.stage,
            domain=_header(request, b"host").decode(),
            address=writer.get_extra_info("peername")[0],
            at=self.clock.wall(),
            headers=headers,
            query=query,
        )
        event = connect_event(about, self.request_id(), self.clock.wall())
        try:
            answer = await self.invoke(event)
        except IntegrationError:
            answer = Answer(502)
        if not 200 <= answer.status < 300:
            writer.write(_refusal(answer.status))
            await writer.drain()
            return
        key = _header(request, b"sec-websocket-key")
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
        head += b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n"
        if protocol := answer.headers.get("sec-websocket-protocol"):
            head += f"Sec-WebSocket-Protocol: {protocol}\r\n".encode()
        writer.write(head + b"\r\n")
        socket = _Socket(self, about, reader, writer)
        self.opened(socket)
        await socket.serve(rest)

    # @connections

    async def _callback(
        self, request: h11.Request, body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        """Answer a call; None when the caller is to get no answer."""
        method = request.method.decode()
        prefix = f"/{self.stage}/@connections/"
        target = request.target.decode().partition("?")[0]
        invokes = target.startswith(_FUNCTIONS) and method == "POST"
        if not target.startswith(prefix) and not invokes:
            return _error(404, "NotFoundException")
        if not _header(request, b"authorization").startswith(b"AWS4-HMAC-SHA256 "):
            return _error(403, "ForbiddenException")
        if invokes:
            if _header(request, b"x-amz-invocation-type") != b"Event":
                return _error(400, "InvalidParameterValueException")
            event = json.loads(body)
            for _ in range(self.faults.invocations()):
                self.spawn(self._invoke_later(event))
            return 202, {}, b""
        if self._posts.take(self.quotas.posts, self.clock.now()) != 1:
            return _error(429, "LimitExceededException")
        name = unquote(target.removeprefix(prefix))
        if method == "POST":
            return await self._post(name, body)
        socket = self._sockets.get(name)
        if socket is None:
            return _error(410, "GoneException")
        if method == "DELETE":
            socket.close(1000, "Connection Closed Normally")
            return 204, {}, b""
        if method == "GET":
            return 200, {"content-type": "application/json"}, socket.describe()
        return _error(403, "ForbiddenException")

    async def _invoke_later(self, event: Event) -> None:
        for pause in (0.0, *RETRIES):
            await self.sleep(pause + self.faults.delays())
            try:
                await self.integration(event)
            except IntegrationError:
                continue
            return

    async def _post(
        self, name: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        await self.sleep(self.faults.delays())
        fate = self.faults.post()
        if fate is Post.THROTTLED:
            return _error(429, "LimitExceededException")
        if fate is Post.GONE:
            return _error(410, "GoneException")
        if fate is Post.LATE:
            self.spawn(self._late(name, body))
        if fate in (Post.LATE, Post.LOST):
            return None
        if len(body) > self.quotas.message:
            return _error(413, "PayloadTooLargeException")
        socket = self._sockets.get(name)
        if socket is None:
            return _error(410, "GoneException")
        if socket.unread > self.quotas.unread:
            return _error(429, "LimitExceededException")
        socket.send(body.decode("utf-8", "replace"))
        return None if fate is Post.ANSWER_LOST else (200, {}, b"")

    async def _late(self, name: str, body: bytes) -> None:
        await self.sleep(self.faults.lateness())
        if (socket := self._sockets.get(name)) is not None:
            socket.send(body.decode("utf-8", "replace"))


class _Socket:
    """One open WebSocket."""

    def __init__(
        self,
        gateway: Gateway,
        about: Connected,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.about = about
        self._gateway = gateway
        self._reader = reader
        self._writer = writer
        self._frames = Connection(ConnectionType.SERVER)
        self._text: list[str] = []
        self._message = self._frame = 0  # bytes read of each
        self._active = gateway.clock.wall()
        self._idle: Timer | None = None
        quotas = gateway.quotas
        self._age = gateway.clock.call_at(gateway.clock.now() + quotas.age, self._away)
        self._touch()

    @property
    def unread(self) -> int:
        """Bytes that the client has not taken."""
        return self._writer.transport.get_write_buffer_size()

    def describe(self) -> bytes:
        """Return what GET says."""

        def text(wall: float) -> str:
            return datetime.fromtimestamp(wall, UTC).isoformat().replace("+00:00", "Z")

        agents = [v for n, v in self.about.headers if n.lower() == "user-agent"]
        return json.dumps(
            {
                "connectedAt": text(self.about.at),
                "lastActiveAt": text(self._active),
                "identity": {
                    "sourceIp": self.about.address,
                    "userAgent": agents[0] if agents else "",
                },
            }
        ).encode()

    def send(self, text: str) -> None:
        """Write a message, in frames of at most 32 KiB."""
        if self._frames.state is not ConnectionState.OPEN:
            return
        self._touch()
        size = self._gateway.quotas.frame // 4  # characters, of 4 bytes at most
        parts = [text[i : i + size] for i in range(0, len(text), size)] or [""]
        for part in parts[:-1]:
            self._write(TextMessage(data=part, message_finished=False))
        self._write(TextMessage(data=parts[-1]))

    def close(self, code: int, reason: str) -> None:
        """Close; nothing reaches the client after this."""
        if self._frames.state is ConnectionState.OPEN:
            self._write(CloseConnection(code=code, reason=reason))
        self._end(code, reason)
        self._writer.close()

    async def serve(self, data: bytes) -> None:
        """Read until the end."""
        code, reason = 1006, "Connection lost"
        try:
            while True:
                if data:
                    self._frames.receive_data(data)
                    for event in self._frames.events():
                        self._take(event)
                        if self._frames.state is not ConnectionState.OPEN:
                            return
                data = await self._reader.read(65536)
                if not data:
                    break
        except RemoteProtocolError as error:
            code = int(getattr(error.event_hint, "code", 1002))
            reason = "protocol error"
            self.close(code, reason)
        except OSError:
            pass
        finally:
            self._end(code, reason)
            self._writer.close()

    def _take(self, event: FrameEvent) -> None:
        if isinstance(event, Ping):
            self._write(event.response())
        elif isinstance(event, CloseConnection):
            if self._frames.state is not ConnectionState.CLOSED:
                self._write(event.response())  # else both have closed at once
            reason = event.reason or "Client-side close frame status not set"
            self._end(int(event.code), reason)
        elif isinstance(event, BytesMessage):
            self.close(1003, "Binary is not supported")
        elif isinstance(event, TextMessage):
            self._read_text(event)

    def _read_text(self, event: Message[str]) -> None:
        size = len(event.data.encode())
        self._frame += size
        self._message += size
        quotas = self._gateway.quotas
        if self._frame > quotas.frame or self._message > quotas.message:
            self.close(1009, "Message too long")
            return
        self._text.append(event.data)
        if event.frame_finished:
            self._frame = 0
        if event.message_finished:
            text, self._text, self._message = "".join(self._text), [], 0
            self._touch()
            self._gateway.spawn(self._invoke(text))

    async def _invoke(self, text: str) -> None:
        gateway = self._gateway
        request = gateway.request_id()
        await gateway.sleep(gateway.faults.delays())
        event = message_event(self.about, text, request, gateway.clock.wall())
        try:
            answer = await gateway.invoke(event)
        except IntegrationError:
            answer = Answer(502)
        if not 200 <= answer.status < 300:
            error = {
                "message": "Internal server error",
                "connectionId": self.about.id,
                "requestId": request,
            }
            self.send(json.dumps(error))

    def _write(self, event: FrameEvent) -> None:
        with suppress(OSError):
            self._writer.write(self._frames.send(event))

    def _touch(self) -> None:
        self._active = self._gateway.clock.wall()
        if self._idle is not None:
            self._idle.cancel()
        clock = self._gateway.clock
        self._idle = clock.call_at(clock.now() + self._gateway.quotas.idle, self._away)

    def _away(self) -> None:
        self.close(1001, "Going away")

    def _end(self, code: int, reason: str) -> None:
        self._age.cancel()
        if self._idle is not None:
            self._idle.cancel()
        self._gateway.closed(self, code, reason)


async def _request(
    http: h11.Connection, reader: asyncio.StreamReader
) -> tuple[h11.Request, bytes] | None:
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            if http.they_are_waiting_for_100_continue:
                return None
            http.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            return request, bytes(body)
        else:  # closed
            return None


def _header(request: h11.Request, name: bytes) -> bytes:
    return next((value for found, value in request.headers if found == name), b"")


def _response(
    http: h11.Connection, status: int, headers: dict[str, str], body: bytes
) -> bytes:
    head = [*headers.items(), ("content-length", str(len(body)))]
    data = http.send(h11.Response(status_code=status, headers=head)) or b""
    if body:
        data += http.send(h11.Data(data=body)) or b""
    return data + (http.send(h11.EndOfMessage()) or b"")


def _refusal(status: int) -> bytes:
    return f"HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\n\r\n".encode()


def _error(status: int, name: str) -> tuple[int, dict[str, str], bytes]:
    headers = {"x-amzn-errortype": name, "content-type": "application/json"}
    return status, headers, json.dumps({"message": name}).encode()


async def _ignore(call: asyncio.Future[Answer]) -> None:
    with suppress(IntegrationError):
        await call


def _set(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)

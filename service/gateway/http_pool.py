"""Pool of HTTP/1.1 connections to one host, for requests of which none is repeated.

Invariants:

* A request is written at most once. Whether a failure came before (`NotSent`) or after
  (`NoAnswer`) its first byte is always known.
* A connection carries one request at a time, and goes back to the pool only after the
  whole answer was read. One that timed out is aborted: its answer can never be taken
  for that of a later request.
* At most `LIMIT` connections are open; `WAITING` more requests wait for one, each
  within its own time, and those beyond are `NotSent`.
* A connection that was idle for `IDLE` seconds is not used again, nor is any after
  `drop_idle`: a server may have closed it meanwhile, and a request written to it would
  have an unknown outcome.

Interleavings that could break them, each a test: the answer arrives when the time ends;
the caller is cancelled while it waits, connects or reads; the server closes an idle
connection, or closes after half an answer.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

import h11

from service.core.ports import Clock

__all__ = ["IDLE", "LIMIT", "WAITING", "HttpPool", "NoAnswer", "NotSent", "Response"]

LIMIT = 64  # connections
WAITING = 4096  # requests that wait for one
IDLE = 10.0  # s; AWS closes idle connections after a minute or more
MOST = 1024 * 1024  # bytes of an answer


class NotSent(Exception):
    """The request was not written: it certainly has no effect."""


class NoAnswer(Exception):
    """The request was written and not answered: it had its effect, will, or won't."""


class Response(NamedTuple):
    """An answer.

    Attributes:
        status: HTTP status.
        body: The whole body.
    """

    status: int
    body: bytes


class HttpPool:
    """Connections to the host of a URL.

    Args:
        url: ``http://`` or ``https://``; its path is not used.
        clock: Of timeouts and idle connections.
        context: Makes the TLS context; it reads files, so it is called in a thread.
    """

    def __init__(
        self, url: str, clock: Clock, context: Callable[[], ssl.SSLContext]
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._clock = clock
        self._make_context = context
        self._context: ssl.SSLContext | None = None
        self._idle: list[_Link] = []  # the one used last at the end
        self._slots = asyncio.Semaphore(LIMIT)
        self._waiting = 0

    def drop_idle(self) -> None:
        """Close the idle connections: this process may have been frozen."""
        idle, self._idle = self._idle, []
        for link in idle:
            link.abort()

    async def close(self) -> None:
        """Close the connections; nothing is requested after this."""
        idle, self._idle = self._idle, []
        for link in idle:
            await link.close()

    async def request(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        timeout: float,
    ) -> Response:
        """Send one request, once.

        Args:
            method: HTTP method.
            target: Path and query, encoded.
            headers: All headers but ``content-length``.
            body: The whole body.
            timeout: Seconds until it is given up, waiting and connecting included.

        Raises:
            NotSent: No connection was free or could be made in time.
            NoAnswer: There was no complete answer in time.
        """
        if self._waiting >= WAITING:
            raise NotSent("too many requests wait")
        late = _Deadline(self._clock, timeout)
        sent = False
        try:
            self._waiting += 1
            try:
                await self._slots.acquire()
            finally:
                self._waiting -= 1
            try:
                link = self._take() or await self._connect()
                kept = False
                try:
                    data = link.encode(method, target, headers, body)
                    sent = True
                    response = await link.exchange(data)
                    kept = True
                finally:
                    if kept and link.is_reusable:
                        link.since = self._clock.now()
                        self._idle.append(link)
                    else:
                        link.abort()
            finally:
                self._slots.release()
        except asyncio.CancelledError:
            if not late.expired():
                raise
            raise (NoAnswer if sent else NotSent)("no answer in time") from None
        except (OSError, EOFError, h11.ProtocolError) as error:
            raise (NoAnswer if sent else NotSent)(type(error).__name__) from error
        finally:
            late.cancel()
        return response

    def _take(self) -> _Link | None:
        oldest = self._clock.now() - IDLE
        while self._idle:
            link = self._idle.pop()
            if link.since > oldest and not link.is_closed:
                return link
            link.abort()
        return None

    async def _connect(self) -> _Link:
        if self._secure and self._context is None:
            self._context = await asyncio.to_thread(self._make_context)
        reader, writer = await asyncio.open_connection(
            self._host, self._port, ssl=self._context
        )
        return _Link(reader, writer)


class _Deadline:
    """Cancels a task when its time ends, and knows that it did."""

    def __init__(self, clock: Clock, timeout: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self._fired = False
        self._timer = clock.call_at(clock.now() + timeout, self._fire)

    def _fire(self) -> None:
        self._fired = True
        self._task.cancel()

    def expired(self) -> bool:
        """Whether the cancellation was this one's alone; it is then taken back."""
        return self._fired and self._task.uncancel() <= self._before

    def cancel(self) -> None:
        self._timer.cancel()


class _Link:
    """One connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.since = 0.0  # when it was used last
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)

    @property
    def is_closed(self) -> bool:
        return self._reader.at_eof() or self._writer.transport.is_closing()

    @property
    def is_reusable(self) -> bool:
        http = self._http
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            return False
        http.start_next_cycle()
        return True

    def abort(self) -> None:
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    def encode(
        self,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
    ) -> bytes:
        head = [*headers, ("content-length", str(len(body)))]
        http = self._http
        data = http.send(h11.Request(method=method, target=target, headers=head)) or b""
        if body:
            data += http.send(h11.Data(data=body)) or b""
        return data + (http.send(h11.EndOfMessage()) or b"")

    async def exchange(self, data: bytes) -> Response:
        """Write *data*, and read the whole answer."""
        self._writer.write(data)
        status = 0
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MOST:
                    raise EOFError
            elif isinstance(event, h11.EndOfMessage):
                return Response(status, bytes(body))
            elif not isinstance(event, h11.InformationalResponse):
                raise EOFError

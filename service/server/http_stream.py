"""One HTTP request: Hypercorn's stream, asking for a body only when it is wanted."""

from __future__ import annotations

from typing import Any, Protocol

from hypercorn.protocol.events import (
    Body,
    EndBody,
    Event,
    Request,
    Response,
    StreamClosed,
)
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream

__all__ = ["HttpStream", "RequestWatcher"]

_BODY = (b"content-length", b"transfer-encoding")


class RequestWatcher(Protocol):
    """The TCP connection, as far as it follows its requests."""

    def request_begun(self, stream: object) -> None:
        """Note that the head of a request is there."""

    def request_complete(self, stream: object) -> None:
        """Note that the body is there too, or that there is none."""

    def request_streams(self, stream: object) -> None:
        """Note that a request, or its answer, is a stream: its time has no end."""

    def request_over(self, stream: object) -> None:
        """Note that the request is answered, or given up; harmless when it was."""


class HttpStream(HTTPStream):
    """One HTTP request and its answer.

    Falcon takes the first event of a request before it looks at the request. The first
    event here is an empty piece of the body, so that a refusal does not wait for the
    body; ``100 Continue`` is sent when the application takes the second.

    The scope's state has a callable ``steadwire.stream`` for the application: it says
    that this request and its answer are a stream, and not bounded in time.
    """

    _watcher: RequestWatcher

    async def handle(self, event: Event) -> None:
        """Take an event from the HTTP protocol below."""
        if isinstance(event, Request):
            self._watcher = event.state.connection  # type: ignore[attr-defined]  # put there by TcpConnection
            self._watcher.request_begun(self)
            headers = dict(event.headers)
            expects = headers.get(b"expect", b"").lower() == b"100-continue"
            if expects and event.http_version != "1.0":
                self.app = self._continuing(self.app)
            await super().handle(event)
            # A copy of the connection's; the application has not run yet.
            self.scope["state"]["steadwire.stream"] = self._is_stream
            if any(name in headers for name in _BODY):
                await super().handle(Body(stream_id=self.stream_id, data=b""))
            return
        if isinstance(event, EndBody):
            self._watcher.request_complete(self)
        elif isinstance(event, StreamClosed):
            self._watcher.request_over(self)
            self._empty_queue()
        await super().handle(event)

    def _is_stream(self) -> None:
        self._watcher.request_streams(self)

    def _empty_queue(self) -> None:
        # The application takes no more, and the reader may be waiting for room.
        if self.app_put is not None:
            queue = self.app_put.__self__  # type: ignore[attr-defined]  # a bound asyncio.Queue.put
            while not queue.empty():
                queue.get_nowait()

    def _continuing(self, app: Any) -> Any:
        async def call(scope: Any, receive: Any, send: Any, *others: Any) -> None:
            taken = 0

            async def receive_body() -> Any:
                nonlocal taken
                taken += 1
                if taken == 2 and self.state is ASGIHTTPState.REQUEST:
                    await self.send(Response(self.stream_id, [], 100))
                return await receive()

            await app(scope, receive_body, send, *others)

        return call

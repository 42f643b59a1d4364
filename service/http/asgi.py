"""Parts of an ASGI application: its life, sub-paths, 503, and a late construction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Generic, Protocol, TypeVar

import structlog

from service.core.errors import StartupError, describe

__all__ = [
    "RECEIVER",
    "Deferred",
    "OpenedByScope",
    "Receiver",
    "below",
    "not_found",
]

log = structlog.get_logger("steadwire")

_UNAVAILABLE = {
    "type": "http.response.start",
    "status": 503,
    "headers": [(b"content-length", b"0")],
}


RECEIVER = "steadwire.receiver"
"""Key in the scope of a request: its `Receiver`."""


class Receiver:
    """What a request receives, and whether its peer is there.

    Args:
        receive: The server's.

    Attributes:
        gone: Whether the peer was seen to be gone.
    """

    __slots__ = ("_receive", "_watch", "gone")

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        self.gone = False
        self._receive = receive
        self._watch: asyncio.Task[None] | None = None

    async def __call__(self) -> Any:
        """Return the next event."""
        event = await self._receive()
        if event["type"] == "http.disconnect":
            self.gone = True
        return event

    def watch(self, gone: Callable[[], object]) -> None:
        """Call *gone* when the peer is gone; its body is not read any more."""
        self._watch = asyncio.ensure_future(self._wait(gone))

    def stop_watching(self) -> None:
        """Do not call that any more."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()

    async def _wait(self, gone: Callable[[], object]) -> None:
        while not self.gone:
            await self()
        gone()


def below(scope: dict[str, Any]) -> dict[str, Any]:
    """Return *scope* with its path relative to where the application is mounted.

    By the ASGI specification the path begins with ``root_path``. Some frameworks
    remove that prefix before they call a mounted application; then nothing is changed.
    """
    root, path = scope.get("root_path", ""), scope["path"]
    if not root or not path.startswith(f"{root.rstrip('/')}/"):
        return scope
    return {**scope, "path": path[len(root.rstrip("/")) :]}


async def _unavailable(scope: Any, receive: Any, send: Any) -> None:
    """Answer 503; refuse a WebSocket before it is accepted."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1013})
        return
    await send(_UNAVAILABLE)
    await send({"type": "http.response.body"})


async def not_found(scope: Any, receive: Any, send: Any) -> None:
    """Answer 404; refuse a WebSocket before it is accepted."""
    await receive()
    answer = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1000})  # which is status 403
            return
        answer = "websocket.http.response"
    headers = [(b"content-length", b"0")]
    await send({"type": f"{answer}.start", "status": 404, "headers": headers})
    await send({"type": f"{answer}.body", "body": b""})


class Served(Protocol):
    """What an `OpenedByScope` has opened."""

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one HTTP request or WebSocket."""


_Served = TypeVar("_Served", bound=Served)


class OpenedByScope(Generic[_Served]):
    """An ASGI application that opens with its first scope, and answers 503 until then.

    It starts once and drains once, however often that is asked.

    Args:
        make: Makes the context manager of what is served: the start enters it, and the
            drain leaves it.

    Attributes:
        startup_error: Why the start failed; None before that.
        stopping: Set when the drain begins: a start must not wait for anything long.
    """

    def __init__(
        self, make: Callable[[], AbstractAsyncContextManager[_Served]]
    ) -> None:
        self.startup_error: BaseException | None = None
        self.stopping = asyncio.Event()
        self._make = make
        self._opened = AsyncExitStack()
        self._starting: asyncio.Task[_Served] | None = None
        self._draining: asyncio.Task[None] | None = None

    async def start(self) -> _Served:
        """Open and return what is served.

        Raises:
            SteadwireError: A setting is wrong (SettingsError), or the service cannot
                start (StartupError). `startup_error` keeps it.
        """
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        return await asyncio.shield(self._starting)

    @property
    def opened(self) -> _Served | None:
        """What is served; None before the start, and after one that failed."""
        starting = self._starting
        if starting is None or not starting.done() or self.startup_error is not None:
            return None
        return starting.result()

    async def drain(self) -> None:
        """Close every client with 3001, then flush and close the store.

        A start that is under way is waited for, and gives up what it waits for.
        """
        self.stopping.set()
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        await asyncio.shield(self._draining)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        first = self._starting is None
        try:
            served = self.opened or await self.start()
        except Exception as error:
            if first:
                log.error("cannot start", reason=str(error), **describe(error))
            await _unavailable(scope, receive, send)
            return
        await served.serve(scope, receive, send)

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.drain()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> _Served:
        try:
            if self._draining is not None:
                raise StartupError("the service was drained before it started")
            return await self._opened.enter_async_context(self._make())
        except Exception as error:
            self.startup_error = error
            raise

    async def _drain(self) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
        await self._opened.aclose()


class Deferred:
    """An application made when a stock server starts it, not when it is imported.

    Args:
        make: Makes it. An exception of it is a failed start-up.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI scope."""
        if self._made is None:
            try:
                self._made = self._make()
            except Exception as error:
                if scope["type"] != "lifespan":
                    raise
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
        await self._made(scope, receive, send)

"""Parts of an ASGI application: lifespan, sub-paths, 503, and a late construction."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Deferred", "below", "lifespan", "unavailable"]

_UNAVAILABLE = {
    "type": "http.response.start",
    "status": 503,
    "headers": [(b"content-length", b"0")],
}


async def lifespan(
    receive: Any,
    send: Any,
    start: Callable[[], Awaitable[object]],
    drain: Callable[[], Awaitable[None]],
) -> None:
    """Speak the lifespan protocol: start when asked to, and drain at the shutdown.

    What *start* raises is reported as a failed start-up.
    """
    await receive()
    try:
        await start()
    except Exception as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await drain()
    await send({"type": "lifespan.shutdown.complete"})


def below(scope: dict[str, Any]) -> dict[str, Any]:
    """Return *scope* with its path relative to where the application is mounted.

    By the ASGI specification the path begins with ``root_path``. Some frameworks
    remove that prefix before they call a mounted application; then nothing is changed.
    """
    root, path = scope.get("root_path", ""), scope["path"]
    if not root or not path.startswith(f"{root.rstrip('/')}/"):
        return scope
    return {**scope, "path": path[len(root.rstrip("/")) :]}


async def unavailable(scope: Any, receive: Any, send: Any) -> None:
    """Answer 503; refuse a WebSocket before it is accepted."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1013})
        return
    await send(_UNAVAILABLE)
    await send({"type": "http.response.body"})


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

"""Life inside another ASGI application: sub-paths, and requests without a service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Deferred", "below", "unavailable"]

_ABSENT = {
    "type": "http.response.start",
    "status": 503,
    "headers": [(b"content-length", b"0")],
}


def below(scope: dict[str, Any]) -> dict[str, Any]:
    """Return *scope* with a path that is ours, below where we are mounted.

    By the ASGI specification the path begins with ``root_path``. Some applications
    have taken it off already; then there is nothing to do.
    """
    root, path = scope.get("root_path", ""), scope["path"]
    if not root or not path.startswith(f"{root.rstrip('/')}/"):
        return scope
    return {**scope, "path": path[len(root.rstrip("/")) :]}


async def unavailable(scope: Any, receive: Any, send: Any) -> None:
    """Answer 503, and turn a WebSocket away before it is one."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1013})
        return
    await send(_ABSENT)
    await send({"type": "http.response.body"})


class Deferred:
    """An application made when a stock server starts it, not when it is imported.

    Args:
        make: Makes it. What it raises ends a start-up.
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

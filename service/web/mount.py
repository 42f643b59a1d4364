"""Life inside another ASGI application: sub-paths, and requests without a service."""

from __future__ import annotations

from typing import Any

__all__ = ["below", "unavailable"]

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

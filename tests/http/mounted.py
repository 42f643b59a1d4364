"""Somebody's ASGI application with ours in it: ``hypercorn tests.http.mounted:app``.

It keeps the lifespan to itself, so ours starts with the first request. Under ``/new``
it mounts as the ASGI specification says, under ``/old`` as older frameworks did.
"""

from __future__ import annotations

import os
from typing import Any

from service.app import create_app
from service.server import install
from service.settings import load

settings = load(os.environ, {})
ours = create_app(settings)
install(settings, ours.refusals)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serve one ASGI scope."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await ours.drain()
        await send({"type": "lifespan.shutdown.complete"})
        return
    path = scope["path"]
    if path.startswith("/new/"):
        await ours({**scope, "root_path": "/new"}, receive, send)
    elif path.startswith("/old/"):
        stripped = path.removeprefix("/old")
        await ours({**scope, "root_path": "/old", "path": stripped}, receive, send)
    else:
        head = {"type": "http.response.start", "status": 200, "headers": []}
        await send(head)
        await send({"type": "http.response.body", "body": b"somebody else"})

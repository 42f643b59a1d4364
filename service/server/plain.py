"""Hypercorn as it is, for a small application of ours beside the service."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import hypercorn.asyncio
from hypercorn.config import Config, Sockets

__all__ = ["serve_plain"]


class _Config(Config):
    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def create_sockets(self) -> Sockets:
        return Sockets([], [self._listener], [])


async def serve_plain(
    application: Any,
    listener: socket.socket,
    *,
    ended: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT, then close it.

    Args:
        application: An ASGI application; what it still does then is cut off.
        listener: Bound.
        ended: Awaited as another reason to end.
    """
    listener.setblocking(False)
    config = _Config(listener)
    config.accesslog = config.errorlog = None
    config.include_server_header = False
    config.graceful_timeout = 0.0
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async def trigger() -> None:
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait())]
        if ended is not None:
            waits.append(asyncio.ensure_future(ended()))
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
        # Hypercorn cancels what still runs, and asyncio would show each as a fault.
        loop.set_exception_handler(lambda loop, context: None)

    with contextlib.closing(listener):
        await hypercorn.asyncio.serve(
            application, config, shutdown_trigger=trigger, mode="asgi"
        )

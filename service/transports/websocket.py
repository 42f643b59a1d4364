"""WebSocket connections that end in this process: the Falcon resource."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import falcon
import falcon.asgi
from falcon import OperationNotAllowed, PayloadTypeError, WebSocketDisconnected

from service.errors import Close
from service.transports.door import VISIT
from service.transports.driver import Driver
from service.transports.services import Services

__all__ = ["WebSocketResource"]

ABORT = "steadwire.abort"
"""Key in ``scope["state"]``: drops the connection's transport (service.server)."""


class WebSocketResource:
    """``/connection/websocket``."""

    def __init__(self, services: Callable[[], Services]) -> None:
        self._services = services

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer a plain GET: this path is for WebSocket clients."""
        resp.status = falcon.HTTP_426
        resp.set_header("Upgrade", "websocket")
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = "This is a WebSocket endpoint."

    async def on_websocket(
        self, req: falcon.asgi.Request, ws: falcon.asgi.WebSocket
    ) -> None:
        """Serve one connection, which the door has let in, until it ends."""
        # Old SDKs send an empty header; only a name that we know is answered.
        known = "centrifuge-json" in ws.subprotocols
        await ws.accept("centrifuge-json" if known else None)
        abort = req.scope.get("state", {}).get(ABORT)
        driver = Driver(self._services(), _FalconSocket(ws, abort), req.scope[VISIT])
        code: int | None = None
        try:
            while True:
                try:
                    frame = await ws.receive_text()
                except PayloadTypeError:
                    driver.refuse()
                    continue
                driver.receive(frame)
                await driver.room()
        except WebSocketDisconnected as end:
            code = end.code
        except OperationNotAllowed:
            pass
        finally:
            driver.gone(code)


class _FalconSocket:
    """`driver.Socket` on a Falcon WebSocket."""

    __slots__ = ("_abort", "_task", "_ws")

    def __init__(
        self, ws: falcon.asgi.WebSocket, abort: Callable[[], None] | None
    ) -> None:
        self._ws = ws
        self._abort = abort
        self._task = asyncio.current_task()

    async def send(self, text: str) -> None:
        try:
            await self._ws.send_text(text)
        except (WebSocketDisconnected, OperationNotAllowed) as error:
            raise ConnectionResetError("the client is gone") from error

    async def close(self, close: Close) -> None:
        try:
            await self._ws.close(close.code, close.reason)
        except (WebSocketDisconnected, OperationNotAllowed) as error:
            raise ConnectionResetError("the client is gone") from error

    def abort(self) -> None:
        if self._abort is not None:
            self._abort()
        elif self._task is not None:
            # Another server than ours: ending the handler is all we can do.
            self._task.cancel()

"""WebSocket connections that end in this process: the Falcon resource.

Origins: a browser sends one, and it must be allowed. The server's own host is, if the
name in the Host header cannot have been rebound to us by someone else's DNS: an
address, ``localhost``, or the configured host.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

import falcon
import falcon.asgi
from falcon import OperationNotAllowed, PayloadTypeError, WebSocketDisconnected

from service.errors import Close
from service.settings import ServerSettings
from service.transports.driver import Driver
from service.transports.services import Services

__all__ = ["WebSocketResource", "origin_allowed"]

ABORT = "steadwire.abort"
"""Key in ``scope["state"]``: drops the connection's transport (service.server)."""


class WebSocketResource:
    """``/connection/websocket``."""

    def __init__(
        self,
        services: Callable[[], Services],
        settings: ServerSettings,
        *,
        draining: Callable[[], bool],
    ) -> None:
        self._services = services
        self._settings = settings
        self._draining = draining

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
        """Serve one connection until it ends."""
        if self._draining() or not origin_allowed(
            req.get_header("origin"), req.get_header("host"), self._settings
        ):
            await ws.close()  # before accept: status 403
            return
        # Old SDKs send an empty header; only a name that we know is answered.
        known = "centrifuge-json" in ws.subprotocols
        await ws.accept("centrifuge-json" if known else None)
        abort = req.scope.get("state", {}).get(ABORT)
        driver = Driver(
            self._services(), _FalconSocket(ws, abort), req.remote_addr or ""
        )
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


def origin_allowed(
    origin: str | None, host: str | None, settings: ServerSettings
) -> bool:
    """Tell whether a request with these headers may connect.

    Args:
        origin: The Origin header; None is no browser, and allowed.
        host: The Host header.
        settings: The allow-list and the server's own host.
    """
    if origin is None or origin in settings.origins:
        return True
    if host is None:
        return False
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.netloc.lower() != host.lower():
        return False
    if name in ("localhost", settings.host.lower()):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

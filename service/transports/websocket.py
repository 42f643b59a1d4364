"""The Falcon resource of client WebSockets that end in this process.

Clients speak JSON unless they ask for protobuf: by the subprotocol that they offer, or
in the URL, as ``?format=protobuf`` or ``?cf_protocol=protobuf``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import falcon
import falcon.asgi
from falcon import OperationNotAllowed, PayloadTypeError, WebSocketDisconnected

from service.connections.connection import ClientConnection
from service.connections.context import ConnectionContext
from service.core.errors import Close
from service.core.ports import Frame, Send, Socket
from service.protocol.codec import negotiate
from service.protocol.json import Json
from service.protocol.protobuf import Protobuf
from service.transports.handshake_gate import PENDING

__all__ = ["WebSocketResource"]

ABORT = "steadwire.abort"
"""Key in ``scope["state"]``: drops the connection's transport (service.server)."""


PROGRESS = "steadwire.progress"
"""Key in ``scope["state"]``: `ports.Socket.progress` (service.server)."""


FRAMES = "steadwire.frames"
"""Key in ``scope["state"]``: a WebSocket whose messages may be had and written without
ASGI (service.server). Others have none."""


class Frames(Protocol):
    """What is there under `FRAMES`."""

    def hand_over(self, receiver: ClientConnection) -> bool:
        """Give *receiver* the messages and the end; False: ASGI has the end already."""

    async def close(self, code: int, reason: str) -> None:
        """Write a close frame and end the connection, once it is handed over."""

    def write_message(self, message: str | bytes) -> Coroutine[Any, Any, None] | None:
        """Write a message, as `ports.Send`."""


class WebSocketResource:
    """``/connection/websocket``."""

    def __init__(self, context: ConnectionContext) -> None:
        self._context = context
        self._json = Json()
        self._protobuf = Protobuf()

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
        """Serve one connection that the handshake gate has let in, until it ends."""
        asked = (req.get_param("format"), req.get_param("cf_protocol"))
        subprotocol, protobuf = negotiate(ws.subprotocols, asked)
        codec = self._protobuf if protobuf else self._json
        await ws.accept(subprotocol)
        state = req.scope.get("state", {})
        frames: Frames | None = state.get(FRAMES)
        pending, socket = req.scope[PENDING], _socket(ws, state, frames)
        connection = ClientConnection(self._context, socket, codec, pending)
        if frames is not None:
            pending.kept = frames.hand_over(connection)
            if pending.kept:
                return  # the connection is told of the end; nothing waits for it here
        receive = ws.receive_data if codec.binary else ws.receive_text
        code: int | None = None
        try:
            while True:
                try:
                    frame = await receive()
                except PayloadTypeError:
                    connection.malformed()  # a frame of the other kind
                    continue
                connection.receive(frame)
                await connection.ready()
        except WebSocketDisconnected as end:
            code = end.code
        except OperationNotAllowed:
            pass
        finally:
            connection.gone(code)


def _unknown() -> tuple[int, int]:
    return 0, 0  # under another ASGI server


def _socket(
    ws: falcon.asgi.WebSocket, state: Mapping[str, Any], frames: Frames | None
) -> Socket:
    if frames is not None:
        return _FrameSocket(frames, state[ABORT], state[PROGRESS])
    return _FalconSocket(ws, state.get(ABORT), state.get(PROGRESS) or _unknown)


class _FalconSocket:
    """`ports.Socket` on a Falcon WebSocket."""

    __slots__ = ("_abort", "_task", "_ws", "progress")

    def __init__(
        self,
        ws: falcon.asgi.WebSocket,
        abort: Callable[[], None] | None,
        progress: Callable[[], tuple[int, int]],
    ) -> None:
        self._ws = ws
        self._abort = abort
        self.progress = progress
        self._task = asyncio.current_task()

    async def send(self, frame: Frame) -> None:
        try:
            if isinstance(frame, str):
                await self._ws.send_text(frame)
            else:
                await self._ws.send_data(frame)
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
            # Under another ASGI server, ending the handler is all we can do.
            self._task.cancel()


class _FrameSocket:
    """`ports.Socket` on what is there under `FRAMES`."""

    __slots__ = ("_frames", "abort", "progress", "send")

    def __init__(
        self,
        frames: Frames,
        abort: Callable[[], None],
        progress: Callable[[], tuple[int, int]],
    ) -> None:
        self._frames = frames
        self.abort = abort
        self.progress = progress
        self.send: Send = frames.write_message

    async def close(self, close: Close) -> None:
        await self._frames.close(close.code, close.reason)

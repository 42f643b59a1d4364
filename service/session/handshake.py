"""The connect command: ask who it is, join its channels, then one reply for all.

    ask a hook ──► identity ──► join the server-side channels, held ──► the reply
        │                           │
        └──────── refused ◄─────────┘        the connection is then of no use

The reply goes out when every channel is joined, and only then may anything be written
for them: a publication before the reply would be lost or doubled by the SDKs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from service.errors import (
    CLOSE_BAD_REQUEST,
    INVALID_TOKEN,
    CloseError,
    CodecError,
    ErrorReply,
)
from service.handlers import ConnectEvent, ConnectResult
from service.model import Channel, ClientId, Position, UserId
from service.payload import dump_optional
from service.protocol import json as wire
from service.session.channels import Channels
from service.session.port import Identity, Port

__all__ = ["Handshake"]


class Handshake:
    """The connect of one connection, from the command to its reply.

    Args:
        port: The session's.
        channels: The session's.
        client: The connection's id.
        version: Ours.
        ping: The ping interval in seconds.
        asks: Whether a hook decides.
        insecure: Whether anybody is let in where no hook decides.
        admitted: Told who it is, before its channels are joined.
        welcomed: Called right before the reply is written.
        refused: Called right before the error is written.
    """

    def __init__(
        self,
        port: Port,
        channels: Channels,
        client: ClientId,
        *,
        version: str,
        ping: float,
        asks: bool,
        insecure: bool,
        admitted: Callable[[Identity], None],
        welcomed: Callable[[], None],
        refused: Callable[[], None],
    ) -> None:
        self._port = port
        self._channels = channels
        self._client = client
        self._version = version
        self._ping = ping
        self._asks = asks
        self._insecure = insecure
        self._admitted = admitted
        self._welcomed = welcomed
        self._refused = refused
        self._asked: dict[Channel, Position] = {}

    def begin(self, command: int, fields: dict[str, Any]) -> None:
        """Handle the connect command.

        Raises:
            CloseError: Nobody can be let in this way.
            CodecError: A field has the wrong type.
        """
        event = ConnectEvent(
            self._client,
            wire.text(fields, "token"),
            wire.raw(fields, "data"),
            wire.text(fields, "name"),
            wire.text(fields, "version"),
            wire.mapping(fields, "headers") or {},
        )
        self._asked = _positions(wire.mapping(fields, "subs") or {})
        if self._asks:
            self._port.ask(command, event)
        elif self._insecure:
            self.admit(command, ConnectResult())
        else:
            # Nothing can verify a token yet, so no token is valid.
            raise CloseError(INVALID_TOKEN if event.token else CLOSE_BAD_REQUEST)

    def admit(self, command: int, result: ConnectResult) -> None:
        """Let the client in as the hook says."""
        info, data = dump_optional(result.info), dump_optional(result.data)
        identity = Identity(self._client, UserId(result.user), info)
        self._admitted(identity)

        def joined(results: dict[Channel, str] | ErrorReply) -> None:
            if isinstance(results, ErrorReply):
                self.turn_away(command, results)
                return
            self._welcomed()
            self._port.reply(
                wire.connect_reply(
                    command,
                    self._client,
                    self._version,
                    self._ping,
                    data=data,
                    subscriptions=results.items(),
                )
            )
            for channel in results:
                self._port.release(channel)

        channels = [Channel(name) for name in result.channels]
        self._channels.add_all(identity, channels, self._asked, joined)

    def turn_away(self, command: int, error: ErrorReply) -> None:
        """Refuse the connect."""
        for channel in tuple(self._channels):
            self._port.unsubscribe(channel)
        self._channels.clear()
        self._refused()
        self._port.reply_error(command, error)


def _positions(subs: dict[str, Any]) -> dict[Channel, Position]:
    """Return where the client wants its server-side subscriptions recovered from."""
    found = {}
    for name, request in subs.items():
        if type(request) is not dict:
            raise CodecError("subs must be an object of objects")
        if wire.boolean(request, "recover"):
            found[Channel(name)] = wire.position(request)
    return found

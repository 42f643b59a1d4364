"""The connect command: ask who it is, join its channels, then one reply for all.

    ask a hook ──► identity ──► a slot ──► join the server-side channels ──► the reply
        │                          │             │         (held)
        └──────────── refused ◄────┴─────────────┘      the connection is of no use then

The reply goes out when every channel is joined, and only then may anything be written
for them: a publication before the reply would be lost or doubled by the SDKs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
        identified: Told who it is, before it is given a slot.
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
        identified: Callable[[Identity], None],
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
        self._identified = identified
        self._welcomed = welcomed
        self._refused = refused
        self._asked: dict[Channel, Position] = {}
        self._command = 0
        self._join: Callable[[], None] | None = None

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
        """Let the client in as the hook says, if there is room for it."""
        info, data = dump_optional(result.info), dump_optional(result.data)
        identity = Identity(self._client, UserId(result.user), info)
        channels = [Channel(name) for name in result.channels]

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

        self._command = command
        self._join = partial(
            self._channels.add_all, identity, channels, self._asked, joined
        )
        self._identified(identity)
        self._port.admit(identity)

    def admitted(self, refusal: ErrorReply | None) -> None:
        """Go on with a client that has its slot; refuse one that gets none for now."""
        join, self._join = self._join, None
        assert join is not None
        if refusal is None:
            join()
        else:
            self.turn_away(self._command, refusal)

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

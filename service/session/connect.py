"""The connect command: ask who it is, join its channels, then one reply for all.

    ask ──► identity ──► a slot ──► join the server-side channels ──► the reply
     │                     │              │        (held)
     └────── refused ◄─────┴──────────────┘      the connection is of no use then

A token is verified where there are keys, and then it alone decides; else a connect hook
is asked; else the settings say whether somebody without a token is let in.

The reply goes out when every channel is joined, and only then may anything be written
for them: a publication before the reply would be lost or doubled by the SDKs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from service.auth.permissions import Permissions
from service.core.errors import (
    CLOSE_BAD_REQUEST,
    INVALID_TOKEN,
    CloseError,
    ErrorReply,
    ReplyError,
)
from service.core.hooks import ConnectEvent, ConnectResult, Handlers, ServerSubscription
from service.core.model import (
    NO_OVERRIDE,
    Channel,
    ClientId,
    Override,
    Position,
    RawJson,
    UserId,
)
from service.payload import dump_optional
from service.protocol import replies
from service.protocol.commands import ConnectRequest
from service.session.channels import Channels
from service.session.expiry import Expiry
from service.session.port import Decision, Identity, Port

__all__ = ["Handshake"]


class _Wish(NamedTuple):
    """A channel that the client is to be subscribed to by the server."""

    info: RawJson | None = None
    data: RawJson | None = None
    override: Override = NO_OVERRIDE


class _Entrance(NamedTuple):
    """A client that is let in, and what for.

    Attributes:
        command: The connect command.
        identity: Who it is.
        data: A payload for the reply.
        ttl: For the reply.
        wishes: Its server-side subscriptions.
    """

    command: int
    identity: Identity
    data: RawJson | None
    ttl: int | None
    wishes: dict[Channel, _Wish]


class Handshake:
    """The connect of one connection, from the command to its reply.

    Args:
        port: The session's.
        channels: The session's.
        permissions: Know the channel of a user's own, and options that are different.
        handlers: Decide, where they are.
        expiry: The session's.
        client: The connection's id.
        version: Ours.
        ping: The ping interval in seconds.
        anonymous: Whether somebody without a token is let in where no hook decides.
        insecure: The same, whatever token they send where no key can verify it.
        identified: Told who it is and why, before it is given a slot; raises nothing
            for a result that `admit` has looked at.
        welcomed: Called right before the reply is written.
        refused: Called right before the error is written.
    """

    def __init__(
        self,
        port: Port,
        channels: Channels,
        permissions: Permissions,
        handlers: Handlers,
        expiry: Expiry,
        client: ClientId,
        *,
        version: str,
        ping: float,
        anonymous: bool,
        insecure: bool,
        identified: Callable[[Identity, ConnectResult, float], None],
        welcomed: Callable[[], None],
        refused: Callable[[], None],
    ) -> None:
        self._port = port
        self._channels = channels
        self._permissions = permissions
        self._verifies = handlers.verifies
        self._hook = handlers.connect is not None
        self._expiry = expiry
        self._client = client
        self._version = version
        self._ping = ping
        self._anonymous = anonymous
        self._insecure = insecure
        self._identified = identified
        self._welcomed = welcomed
        self._refused = refused
        self._asked: dict[Channel, Position] = {}
        self._entrance: _Entrance | None = None

    def begin(self, command: int, request: ConnectRequest, now: float) -> None:
        """Handle the connect command.

        Raises:
            CloseError: Nobody can be let in this way.
        """
        event = ConnectEvent(
            self._client,
            request.token,
            request.data,
            request.name,
            request.version,
            request.headers,
        )
        self._asked = request.positions
        if self._verifies(event.token) or self._hook:
            self._port.ask(command, event)
        elif self._insecure or (self._anonymous and not event.token):
            self._port.audit(Decision("connect", UserId("")))
            self.admit(command, ConnectResult(), now)
        else:
            close = INVALID_TOKEN if event.token else CLOSE_BAD_REQUEST
            why = "no key can verify it" if event.token else "there is no token"
            self._port.audit(Decision("connect", UserId(""), close.code, why))
            raise CloseError(close, reason=why)

    def admit(self, command: int, result: ConnectResult, now: float) -> None:
        """Let the client in as was answered, if there is room for it.

        Raises:
            Exception: The answer is of the wrong types; nothing was done.
        """
        identity = Identity(
            self._client,
            UserId(result.user),
            dump_optional(result.info),
            dump_optional(result.meta),
        )
        ttl = self._expiry.ttl(result.expire_at, now)
        self._entrance = _Entrance(
            command,
            identity,
            dump_optional(result.data),
            ttl if result.client_side_refresh else None,
            _wishes(result),
        )
        self._identified(identity, result, now)
        self._port.acquire_slot(identity)

    def admitted(self, refusal: ErrorReply | None) -> None:
        """Go on with a client that has its slot; refuse one that gets none for now."""
        entrance, self._entrance = self._entrance, None
        assert entrance is not None
        if refusal is None:
            self._enter(entrance)
        else:
            self.turn_away(entrance.command, refusal)

    def _enter(self, entrance: _Entrance) -> None:
        """Join the channels, then reply."""
        command, identity = entrance.command, entrance.identity
        results: dict[Channel, str] = {}
        over = False

        def joined(channel: Channel, result: str | ErrorReply) -> None:
            nonlocal over
            if over:
                return
            if isinstance(result, ErrorReply):
                over = True
                self.turn_away(command, result)
                return
            results[channel] = result
            if len(results) == len(wishes):
                self._welcome(entrance, results)

        asked, self._asked = self._asked, {}  # not kept: it is as large as a frame
        wishes = dict(entrance.wishes)
        try:
            own = self._permissions.personal_channel(identity.user)
        except ReplyError as refusal:
            self.turn_away(command, refusal.error)
            return
        if own is not None:
            wishes.setdefault(own, _Wish())
        if not wishes:
            self._welcome(entrance, results)
        for channel in sorted(wishes):
            if over:
                return
            wish, tell = wishes[channel], partial(joined, channel)
            try:
                self._channels.add(
                    identity,
                    channel,
                    asked.get(channel),
                    tell,
                    held=True,
                    info=wish.info,
                    data=wish.data,
                    rules=self._permissions.rules(channel).changed(wish.override),
                )
            except ReplyError as refusal:
                tell(refusal.error)

    def _welcome(self, entrance: _Entrance, results: dict[Channel, str]) -> None:
        self._welcomed()
        self._port.reply(
            replies.connect_reply(
                entrance.command,
                self._client,
                self._version,
                self._ping,
                data=entrance.data,
                ttl=entrance.ttl,
                subscriptions=results.items(),
            )
        )
        for channel in results:
            self._port.activate(channel)

    def turn_away(self, command: int, error: ErrorReply) -> None:
        """Refuse the connect."""
        for channel in tuple(self._channels):
            self._port.leave(channel)
        self._channels.clear()
        self._refused()
        self._port.reply_error(command, error)


def _wishes(result: ConnectResult) -> dict[Channel, _Wish]:
    wishes = {Channel(name): _Wish() for name in result.channels}
    for name, wish in result.subs.items():
        if not isinstance(wish, ServerSubscription):
            raise TypeError("subs must be a mapping to ServerSubscription")
        if not isinstance(wish.override, Override):
            raise TypeError("override must be an Override")
        wishes[Channel(name)] = _Wish(
            dump_optional(wish.info), dump_optional(wish.data), wish.override
        )
    if not all(isinstance(name, str) for name in wishes):
        raise TypeError("a channel must be a string")
    return wishes

"""The connect command: authenticate, take a slot, join channels, then one reply.

    ask ──► identity ──► a slot ──► join the server-side channels ──► the reply
     │                     │              │        (held)
     └────── refused ◄─────┴──────────────┘   the connection cannot be used any more

A token is verified where there are keys, and then it alone decides; otherwise a connect
hook is asked; without one, the settings say whether a client without a token may
connect.

The reply is written when every channel is joined, and nothing may be written for the
channels before it: the SDKs would lose or double a publication that precedes the reply.
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
from service.core.hooks import ConnectEvent, Handlers
from service.core.model import Channel, ClientId, Position, UserId
from service.protocol import replies
from service.protocol.commands import ConnectRequest
from service.session.answers import SubscribeGrant, Welcome
from service.session.expiry import NEVER
from service.session.port import Decision, Identity, Port
from service.session.refresh import NO_CHANNELS
from service.session.subscriptions import Subscriptions

__all__ = ["ConnectCommand"]


class _AwaitingSlot(NamedTuple):
    """The connect of a client that waits for its slot."""

    command: int
    welcome: Welcome


class ConnectCommand:
    """The connect of one connection, from the command to its reply.

    Args:
        port: The session's.
        subscriptions: The session's.
        permissions: Know the channel of a user's own, and the rules of each.
        handlers: Decide, where they are.
        client: The connection's id.
        version: The server's.
        ping: The ping interval in seconds.
        pongs: The client is asked for pongs.
        anonymous: Where no hook decides, a client without a token may connect.
        insecure: Where nothing can verify a token, a client may connect with any.
        identified: Called with a client that may connect, before it is given a slot.
        welcomed: Called right before the reply is written.
        refused: Called right before the error is written.

    Attributes:
        of_token: The channels that its token named, but for its personal one.
    """

    def __init__(
        self,
        port: Port,
        subscriptions: Subscriptions,
        permissions: Permissions,
        handlers: Handlers,
        client: ClientId,
        *,
        version: str,
        ping: float,
        pongs: bool,
        anonymous: bool,
        insecure: bool,
        identified: Callable[[Welcome, float], None],
        welcomed: Callable[[], None],
        refused: Callable[[], None],
    ) -> None:
        self._port = port
        self._subscriptions = subscriptions
        self._permissions = permissions
        self._verifies = handlers.verifies
        self._hook = handlers.connect is not None
        self._client = client
        self._version = version
        self._ping = ping
        self._pongs = pongs
        self._anonymous = anonymous
        self._insecure = insecure
        self._identified = identified
        self._welcomed = welcomed
        self._refused = refused
        self._positions: dict[Channel, Position] = {}
        self._awaiting: _AwaitingSlot | None = None
        self._by_token = False
        self.of_token = NO_CHANNELS

    def begin(self, command: int, request: ConnectRequest, now: float) -> None:
        """Handle the connect command.

        Raises:
            CloseError: Such a client may not connect.
        """
        event = ConnectEvent(
            self._client,
            request.token,
            request.data,
            request.name,
            request.version,
            request.headers,
        )
        self._positions = request.positions
        self._by_token = self._verifies(event.token)
        if self._by_token or self._hook:
            self._port.ask(command, event)
        elif self._insecure or (self._anonymous and not event.token):
            self._port.audit(Decision("connect", UserId("")))
            nobody = Identity(self._client, UserId(""))
            self.granted(
                command, Welcome(nobody, None, None, NEVER, False, "", 0.0, {}), now
            )
        else:
            close = INVALID_TOKEN if event.token else CLOSE_BAD_REQUEST
            why = "no key can verify it" if event.token else "there is no token"
            self._port.audit(Decision("connect", UserId(""), close.code, why))
            raise CloseError(close, reason=why)

    def granted(self, command: int, welcome: Welcome, now: float) -> None:
        """Go on with a client that may connect: it needs a slot."""
        self._awaiting = _AwaitingSlot(command, welcome)
        self._identified(welcome, now)
        self._port.acquire_slot(welcome.identity)

    def slot_acquired(self, refusal: ErrorReply | None) -> None:
        """Go on with a client that has its slot; refuse one that gets none for now."""
        awaiting, self._awaiting = self._awaiting, None
        assert awaiting is not None
        if refusal is None:
            self._join(awaiting.command, awaiting.welcome)
        else:
            self.refuse(awaiting.command, refusal)

    def _join(self, command: int, welcome: Welcome) -> None:
        """Join the channels, then reply."""
        identity = welcome.identity
        results: dict[Channel, str] = {}
        over = False

        def joined(channel: Channel, result: str | ErrorReply) -> None:
            nonlocal over
            if over:
                return
            if isinstance(result, ErrorReply):
                over = True
                self.refuse(command, result)
                return
            results[channel] = result
            if len(results) == len(grants):
                self._reply(command, welcome, results)

        # The positions are not kept: they are as large as a frame.
        positions, self._positions = self._positions, {}
        grants = dict(welcome.subscriptions)
        try:
            own = self._permissions.personal_channel(identity.user)
        except ReplyError as refusal:
            self.refuse(command, refusal.error)
            return
        if self._by_token:
            self.of_token = frozenset(grants) - {own} or NO_CHANNELS
        if own is not None:
            grants.setdefault(own, SubscribeGrant())
        if not grants:
            self._reply(command, welcome, results)
        for channel in sorted(grants):
            if over:
                return
            grant, outcome = grants[channel], partial(joined, channel)
            try:
                self._subscriptions.add(
                    identity,
                    channel,
                    positions.get(channel),
                    outcome,
                    pushed=False,
                    info=grant.info,
                    data=grant.data,
                    override=grant.override,
                )
            except ReplyError as refusal:
                outcome(refusal.error)

    def _reply(
        self, command: int, welcome: Welcome, results: dict[Channel, str]
    ) -> None:
        self._welcomed()
        self._port.reply(
            replies.connect_reply(
                command,
                self._client,
                self._version,
                self._ping,
                pong=self._pongs,
                data=welcome.data,
                ttl=welcome.ttl,
                subscriptions=results.items(),
            )
        )
        for channel in results:
            self._port.activate(channel)

    def refuse(self, command: int, error: ErrorReply) -> None:
        """Refuse the connect."""
        for channel in tuple(self._subscriptions):
            self._port.leave(channel)
        self._subscriptions.clear()
        self._refused()
        self._port.reply_error(command, error)

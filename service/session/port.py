"""Port of a session, and the nouns that it shares with its users."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from service.core.errors import Close, ErrorReply
from service.core.hooks import Event
from service.core.model import (
    Channel,
    ClientId,
    ClientInfo,
    Draft,
    Position,
    RawJson,
    SubscriberInfo,
    UserId,
)
from service.core.ports import History
from service.protocol import replies

__all__ = ["Decision", "Identity", "Port"]


class Decision(NamedTuple):
    """A decision about an identity or a token, for the audit log.

    Attributes:
        about: ``connect``, ``refresh``, ``subscribe`` or ``sub_refresh``.
        user: The user, before a refresh the one until now; "" for an unknown one.
        code: The code of the error or close; 0 for admitted.
        reason: The reason in our words; "" for admitted.
    """

    about: str
    user: UserId
    code: int = 0
    reason: str = ""


class Port(Protocol):
    """The outside of a session.

    A call that has an outcome may have it before it returns: it often is in memory.
    """

    @property
    def has_room(self) -> bool:
        """More may be asked for; if not, `Session.resume` is called in time."""

    @property
    def draining(self) -> bool:
        """No more subscriptions are taken: the client is sent away soon."""

    def later(self) -> None:
        """Call `Session.turn` in the next turn of the event loop."""

    def reply(self, text: str) -> None:
        """Write one reply or push, after all that were written before."""

    def reply_error(self, command: int, error: ErrorReply) -> None:
        """Refuse one command."""

    def acquire_slot(self, identity: Identity) -> None:
        """Ask for one of the limited connections; ends in `Session.slot_acquired`."""

    def release_slot(self) -> None:
        """Give the slot back: the connect is refused after all."""

    def connected(self) -> None:
        """Note that the client is connected: the session's identity is final."""

    def audit(self, decision: Decision) -> None:
        """Log a decision; may be called after `close`, too."""

    def ping(self) -> None:
        """Write a ping, ahead of what waits: it must go out on schedule."""

    def ask(self, command: int, event: Event) -> None:
        """Ask a hook; ends in `Session.answered`."""

    def knows(self, channel: Channel) -> bool:
        """Tell whether the channel is known to have had a publication that was kept."""

    def publish(
        self, command: int, channel: Channel, draft: Draft, history: History
    ) -> None:
        """Publish; ends in `Session.published`."""

    def join(
        self,
        channel: Channel,
        subscriber: SubscriberInfo,
        history: History,
        since: Position | None,
        *,
        held: bool,
        command: int,
    ) -> None:
        """Join a channel; ends in `Session.subscribed`.

        Pushes follow the outcome; when *held*, only after `activate`. *command* is the
        id of the client's subscribe, 0 for a subscription on the server's side.
        """

    def activate(self, channel: Channel) -> None:
        """Let pushes follow for a channel that was held."""

    def leave(self, channel: Channel, command: int = 0) -> None:
        """Leave a channel: no push for it is written after this.

        *command* is the id of the client's unsubscribe, 0 if the server ends the
        subscription. The client may not be in the channel.
        """

    def history(
        self,
        command: int,
        channel: Channel,
        history: History,
        since: Position | None,
        limit: int,
        *,
        reverse: bool,
    ) -> None:
        """Read publications; ends in `Session.history_read`."""

    def refuses_read(self) -> bool:
        """Tell whether a read that may be expensive is refused: overload."""

    def present(self, command: int, channel: Channel, *, stats: bool) -> None:
        """Look who is in a channel; ends in `Session.presence_read`."""

    def close(self, close: Close) -> None:
        """Write what waits, then the close frame, then end the connection."""


class Identity:
    """The client and its user; the user is "" until the client has connected.

    Attributes:
        conn_info: The user's info, shown to others.
        info: The whole client info that others see, as JSON text.
        meta: Passed to hooks; no client sees it.
    """

    __slots__ = ("client", "conn_info", "info", "meta", "user")

    def __init__(
        self,
        client: ClientId,
        user: UserId,
        conn_info: RawJson | None = None,
        meta: RawJson | None = None,
    ) -> None:
        self.client = client
        self.user = user
        self.conn_info = conn_info
        self.meta = meta
        self.info = replies.client_info(ClientInfo(user, client, conn_info))

    def in_channel(self, chan_info: RawJson | None) -> RawJson:
        """Return `info` with the info that is shown in one channel alone."""
        if chan_info is None:
            return self.info
        return replies.client_info(
            ClientInfo(self.user, self.client, self.conn_info, chan_info)
        )

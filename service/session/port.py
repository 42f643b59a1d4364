"""What a session asks of the outside, and what its parts share."""

from __future__ import annotations

from collections import deque
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
from service.protocol.commands import Command

__all__ = ["Decision", "Identity", "Port", "CommandQueue"]


class Decision(NamedTuple):
    """Whether somebody is who they say, or may do what a token is for.

    Attributes:
        about: ``connect``, ``refresh``, ``subscribe`` or ``sub_refresh``.
        user: Who it is, or was before a refresh; "" where nobody is known.
        code: Of the error or the close; 0 for admitted.
        reason: Why, in our words; "" for admitted.
    """

    about: str
    user: UserId
    code: int = 0
    reason: str = ""


class Port(Protocol):
    """What a session asks of the outside.

    An outcome may come before the call returns: it often is in memory.
    """

    @property
    def has_room(self) -> bool:
        """Whether more may be asked for; else `Session.resume` is called in time."""
        ...

    def later(self) -> None:
        """Call `Session.turn` in the event loop's next turn."""
        ...

    def reply(self, text: str) -> None:
        """Write one reply or push, after all that were written before."""
        ...

    def reply_error(self, command: int, error: ErrorReply) -> None:
        """Refuse one command."""
        ...

    def connected(self) -> None:
        """Learn that the session's identity is final: the client is in."""
        ...

    def acquire_slot(self, identity: Identity) -> None:
        """Ask for a slot; ends in `Session.admitted`."""
        ...

    def release_slot(self) -> None:
        """Give the slot back: the connect is refused after all."""
        ...

    def audit(self, decision: Decision) -> None:
        """Log a decision; also after `close`, and whatever it is, it goes on."""
        ...

    def ping(self) -> None:
        """Write a ping, ahead of what waits: it must go out on schedule."""
        ...

    def ask(self, command: int, event: Event) -> None:
        """Ask a hook; ends in `Session.answered`."""
        ...

    def publish(
        self, command: int, channel: Channel, draft: Draft, history: History
    ) -> None:
        """Publish; ends in `Session.published`."""
        ...

    def join(
        self,
        channel: Channel,
        subscriber: SubscriberInfo,
        history: History,
        since: Position | None,
        *,
        held: bool,
    ) -> None:
        """Join a channel; ends in `Session.subscribed`.

        Pushes follow the outcome; when *held*, only after `activate`.
        """
        ...

    def activate(self, channel: Channel) -> None:
        """Let pushes follow for a channel that was held."""
        ...

    def leave(self, channel: Channel) -> None:
        """Leave a channel: not one push after this."""
        ...

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
        ...

    def present(self, channel: Channel) -> list[SubscriberInfo]:
        """Return who is in a channel."""
        ...

    def close(self, close: Close) -> None:
        """Write what waits, then the close frame, then end the connection."""
        ...


class Identity:
    """Who a connection is, once it has connected.

    Attributes:
        conn_info: What its user says of itself.
        info: It as others see it, as JSON text.
        meta: What hooks are told of it, and clients are not.
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
        """Return it as others see it in a channel that knows more of it."""
        if chan_info is None:
            return self.info
        return replies.client_info(
            ClientInfo(self.user, self.client, self.conn_info, chan_info)
        )


class CommandQueue:
    """Commands that wait, and how many are under way.

    Attributes:
        backlog: Commands not yet handled, in order.
        under_way: Commands that wait for an outcome.
        blocked: A command under way holds up all that follow.
        granted: Commands in the backlog that were let through already (`pace`).
        spent: What was handled in this turn of the loop, in units of `pace`.
    """

    __slots__ = ("backlog", "blocked", "granted", "spent", "under_way")

    def __init__(self) -> None:
        self.backlog: deque[Command] = deque()
        self.under_way = 0
        self.blocked = False
        self.granted = 0
        self.spent = 0

    def charge(self, items: int) -> None:
        """Count a command that goes through so many *items*; 32 are a unit."""
        self.spent += items >> 5

    def put_back(self, waiting: deque[Command]) -> None:
        """Take up commands that waited for another, before all the rest."""
        self.under_way -= len(waiting)
        self.granted += len(waiting)
        self.backlog.extendleft(reversed(waiting))

"""One channel of one connection, and the subscribe of it that is under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from service.auth.permissions import ChannelRules
from service.core.errors import ErrorReply, Unsubscribe
from service.core.model import Position, RawJson, SubscriberInfo
from service.protocol.commands import Command
from service.session.expiry import NEVER

__all__ = ["ChannelState", "PendingSubscribe"]


class PendingSubscribe:
    """A subscribe under way, and what waits for it."""

    __slots__ = (
        "asked",
        "hears_joins",
        "outcome",
        "positioned",
        "pushed",
        "reject_unrecovered",
        "removal",
        "ttl",
        "waiting",
    )

    def __init__(
        self,
        asked: Position | None,
        outcome: Callable[[str | ErrorReply], None],
        *,
        reject_unrecovered: bool = False,
        positioned: bool = False,
        hears_joins: bool = False,
    ) -> None:
        self.asked = asked
        self.outcome = outcome  # told the result to write, or the refusal
        self.reject_unrecovered = reject_unrecovered
        self.positioned = positioned  # what the client asks for
        self.hears_joins = hears_joins
        self.pushed = False  # told by a push: SDKs look for no publications there
        self.removal: Unsubscribe | None = None  # the server wants it out again
        self.ttl: int | None = None  # for the reply
        self.waiting: deque[Command] = deque()

    def also(self, done: Callable[[ErrorReply | None], None]) -> None:
        """Tell *done* of the outcome too: None, or the refusal."""
        first = self.outcome

        def outcome(result: str | ErrorReply) -> None:
            first(result)
            done(result if isinstance(result, ErrorReply) else None)

        self.outcome = outcome


class ChannelState:
    """One channel.

    Attributes:
        server: Subscribed on the server's side.
        pending: The subscribe under way, or None once established.
        recoverable: As granted.
        positioned: As granted.
        data: A payload for the reply.
        info: What others see of its client in this channel alone.
        listener: It as the hub knows it, once it was told.
        ends: When it ends if nobody refreshes it, as `Clock.now`.
        refreshes: Its client was told when it expires, and may refresh it.
    """

    __slots__ = (
        "data",
        "ends",
        "info",
        "listener",
        "pending",
        "positioned",
        "recoverable",
        "refreshes",
        "rules",
        "server",
    )

    def __init__(
        self, rules: ChannelRules, pending: PendingSubscribe, *, server: bool
    ) -> None:
        self.rules = rules
        self.pending: PendingSubscribe | None = pending
        self.server = server
        self.recoverable = False
        self.positioned = False
        self.data: RawJson | None = None
        self.info: RawJson | None = None
        self.listener: SubscriberInfo | None = None
        self.ends = NEVER
        self.refreshes = False

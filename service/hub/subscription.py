"""A subscription, the channel it is in, and the connection it belongs to.

Plain records: `fanout` and `catchup` say how they change, and keep the invariants.
"""

from __future__ import annotations

from typing import Protocol

from service.core.model import Channel, Position, SubscriberInfo
from service.core.ports import History
from service.protocol import replies

__all__ = ["Member", "Subscription", "Topic"]


class Member(Protocol):
    """A connection as the hub knows it.

    Attributes:
        behind: Its subscriptions that are behind, the least recently served first;
            kept by the hub. The member calls `Hub.advance` for each, in this order,
            whenever all it was handed has been written.
    """

    behind: dict[Subscription, None]

    @property
    def space(self) -> int:
        """Bytes of recovered publications that it takes now; may be negative."""
        ...

    @property
    def idle(self) -> bool:
        """Whether everything handed over so far has been written."""
        ...

    def put(self, text: str) -> None:
        """Hand over one message; never blocks, never raises."""
        ...

    def lost(self, channel: Channel) -> None:
        """Learn that a subscription ended because a gap could not be filled."""
        ...


class Topic:
    """A channel that somebody listens to.

    Attributes:
        seen: The newest offset that the listener was told of, in `epoch`.
        turn: Counts changes of `epoch`.
        parked: Left by their connections, and still shown; the first one first.
    """

    __slots__ = (
        "channel",
        "epoch",
        "parked",
        "quoted",
        "seen",
        "subscriptions",
        "turn",
    )

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.quoted = replies.quote(channel)
        self.seen = 0
        self.epoch = ""
        self.turn = 0
        self.subscriptions: set[Subscription] = set()
        self.parked: dict[Subscription, None] = {}


class Subscription:
    """One member in one channel.

    Attributes:
        top: The newest position when the join's page was read.
        next: The offset expected next; 0 before the join's page, and without history.
        epoch: The run of offsets that `next` belongs to.
        joined: Its reply is on its way: things may be written for it.
        live: It is handed publications as they are committed.
        reading: A read for it is under way.
        turn: The topic's turn when its last read began.
        left: It is over; nothing is written for it any more.
    """

    __slots__ = (
        "epoch",
        "history",
        "joined",
        "left",
        "listener",
        "live",
        "member",
        "next",
        "reading",
        "top",
        "topic",
        "turn",
    )

    def __init__(
        self, topic: Topic, member: Member, listener: SubscriberInfo, history: History
    ) -> None:
        self.topic = topic
        self.member = member
        self.listener = listener
        self.history = history
        self.turn = topic.turn
        self.top = Position(0, "")
        self.next = 0
        self.epoch = ""
        self.joined = False
        self.live = False
        self.reading = False
        self.left = False

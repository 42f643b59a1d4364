"""The records of the hub: a channel with subscribers, and one subscription to it.

`hub`, `catchup` and `announcements` change them, and keep the invariants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from _speedups import SubscriptionCore
from service.core.model import (
    Channel,
    ClientId,
    Position,
    Publication,
    RawJson,
    SubscriberInfo,
    size_of,
)
from service.core.ports import History
from service.core.position import PIECE, size_of_publication, take_piece
from service.protocol import replies

__all__ = ["Change", "Member", "Remote", "Subscription", "Topic"]


_NOWHERE = Position(0, "")


class Member(Protocol):
    """A connection, as the hub sees it.

    Attributes:
        behind: Its subscriptions that are behind, the least recently served first;
            kept by the hub. The member calls `Hub.advance` for each, in this order,
            whenever it takes more.
    """

    behind: dict[Subscription, None]

    @property
    def space(self) -> int:
        """Bytes of recovered publications that it takes now; may be negative."""

    def takes_more(self) -> bool:
        """Tell whether it takes another piece; if not, it calls `Hub.advance` later."""

    def give(self, size: int) -> None:
        """Count *size* bytes of recovered publications that it is handed now."""

    def put(self, text: str, *, window: float = 0.0) -> None:
        """Hand over a message, or several lines of one each; never blocks or raises.

        It may end this member, which then leaves its channels inside the call. With a
        *window*, the message may wait for others, for so many seconds.
        """

    def lost(self, channel: Channel) -> None:
        """End a subscription whose gap could not be filled; the hub has left it."""


class Topic:
    """A channel that has subscriptions.

    Attributes:
        seen: The newest offset that the hub was told of, in `epoch`.
        generation: Counts the changes of `epoch`.
        moves: Counts what other processes were said to have committed.
        moved: The newest position that they were said to have reached. It may be false.
        deltas: How many of the subscriptions take deltas.
        newest: The payload that those were handed last; None if none was.
        batch_window: Seconds that its publications may wait for others; 0 for none.
        in_grace: Subscriptions that lost connections had, still shown in presence;
            the oldest first.
        listeners: Subscriptions that are told of joins and leaves, each with the number
            of the last one that came before it.
        changes: Joins and leaves that they are not told of yet, by client.
        lookers: Listeners that were shown who is present while something was in
            `changes`, each with the number of the last change then; in its order.
        told_at: When they were told last.
        watched: Subscriptions whose leave somebody waits for, and whom to call.
        remote: Subscribers of other processes, if `shared`.
        shared: They are known, and kept up to date.
    """

    __slots__ = (
        "batch_window",
        "changes",
        "channel",
        "deltas",
        "epoch",
        "generation",
        "in_grace",
        "listeners",
        "lookers",
        "moved",
        "moves",
        "newest",
        "quoted",
        "remote",
        "seen",
        "shared",
        "subscriptions",
        "told_at",
        "watched",
    )

    def __init__(self, channel: Channel, batch_window: float) -> None:
        self.channel = channel
        self.batch_window = batch_window
        self.quoted = replies.quote(channel)
        self.seen = 0
        self.epoch = ""
        self.generation = 0
        self.moves = 0
        self.moved = _NOWHERE
        self.deltas = 0
        self.newest: RawJson | None = None
        self.subscriptions: set[Subscription] = set()
        self.in_grace: dict[Subscription, None] = {}
        self.listeners: dict[Subscription, int] = {}
        self.changes: dict[ClientId, Change] = {}
        self.lookers: dict[Subscription, int] = {}
        self.told_at = float("-inf")
        self.watched: dict[Subscription, Callable[[Subscription], None]] = {}
        self.remote: dict[ClientId, Remote] = {}
        self.shared = False

    def note_move(self, top: Position) -> None:
        """Note that other processes are said to have reached *top*."""
        self.moves += 1
        if top.epoch != self.moved.epoch or top.offset > self.moved.offset:
            self.moved = top


class Remote:
    """A subscriber of another process.

    Attributes:
        subscription: It, as `announcements` takes it; it has no member.
        node: The node that has its connection.
        lost: Its connection was lost, and may come back.
    """

    __slots__ = ("lost", "node", "subscription")

    def __init__(self, subscription: Subscription, node: str, *, lost: bool) -> None:
        self.subscription = subscription
        self.node = node
        self.lost = lost


class Change:
    """A client of a channel that the listeners are to be told of: its leave, its join.

    Attributes:
        left: Left after its join was told; None if it did not.
        left_at: The number of that change.
        joined: Joined after that; None if it did not.
        joined_at: The number of that change.
        paid: Messages taken from the user's rate for the join.
        delayed: They were not enough when the join was due.
    """

    __slots__ = ("delayed", "joined", "joined_at", "left", "left_at", "paid")

    def __init__(self) -> None:
        self.left: Subscription | None = None
        self.left_at = 0
        self.joined: Subscription | None = None
        self.joined_at = 0
        self.paid = 0
        self.delayed = False


class Subscription(SubscriptionCore):
    """One member in one channel.

    `next` is 0 before the page of the join, and without history.

    Attributes:
        subscriber: The member's client, as the others in the channel see it.
        top: The newest position when the page of the join was read.
        joined: Its reply is on its way: pushes may follow.
        reading: A read for it is under way.
        portion: Publications that its next read asks for.
        generation: The topic's generation when its last read began.
        moves: The topic's moves then.
        left: It is over; nothing is written for it any more.
        base: The payload that the client was handed last, if it takes deltas; None
            if none may follow.
    """

    __slots__ = (
        "base",
        "generation",
        "history",
        "joined",
        "left",
        "member",
        "moves",
        "portion",
        "reading",
        "subscriber",
        "top",
        "topic",
    )

    def __init__(
        self,
        topic: Topic,
        member: Member,
        subscriber: SubscriberInfo,
        history: History,
    ) -> None:
        super().__init__(member.put)
        self.topic = topic
        self.member = member
        self.subscriber = subscriber
        self.history = history
        self.generation = topic.generation
        self.moves = topic.moves
        self.top = _NOWHERE
        self.joined = False
        self.reading = False
        self.portion = PIECE
        self.left = False
        self.base: RawJson | None = None

    def piece_of(
        self, publications: list[Publication], size: int, *, least: int
    ) -> tuple[list[Publication], int]:
        """Return how many of *publications* it may be handed next, and their bytes.

        Args:
            publications: Those that follow, in order.
            size: The bytes that they may have.
            least: How many of them may have more.
        """
        if not self.subscriber.delta:
            piece = take_piece(publications, size, least=least)
            return piece, sum(map(size_of_publication, piece))
        total, base = 0, self.base
        for count, publication in enumerate(publications):
            more = size_of(replies.delta_body(publication, base))
            if total + more > size and count >= least:
                return publications[:count], total
            total += more
            base = publication.data
        return publications, total

    def push_of(self, publication: Publication) -> str:
        """Return the push of *publication*, which the member is handed next."""
        quoted = self.topic.quoted
        if not self.subscriber.delta:
            return replies.publication_push(quoted, publication)
        base, self.base = self.base, publication.data
        return replies.delta_push(quoted, publication, base)

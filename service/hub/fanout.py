"""Who listens to what, and delivery in offset order, each offset once.

Whatever feeds the hub may be late, doubled or reordered: per subscription it keeps
the next expected offset. A lower one is dropped, an equal one is written, and a higher
one shows a gap, which is filled from the store. A gap that cannot be filled ends the
subscription with unsubscribe push 2500, and the client recovers or is told.

A subscription is *live* or *behind*. While it is behind, commits are not written to
it and not buffered either: they are in the store, and it reads them from there, a
piece at a time, whenever its connection has written what it had. Joining with
recovery, a gap, and a slow link during recovery are all this one state; so there is
no buffer that could overflow.

Invariants, all on the event loop:

I1 Nothing is written for a channel before its subscribe reply. (`done` is called
   before the subscription can become live or be advanced.)
I2 ``next`` only grows, by one per publication written.
I3 A live subscription has been handed everything that the listener was told of:
   it becomes live only in the same step in which a page up to the topic's newest
   committed offset (`_Topic.seen`) was written, without an await in between.
I4 After `leave` returns, nothing is written for that subscription: every resumption
   looks at ``left`` first.
I5 At most one read is under way per subscription.

Interleavings that could break them, each a test in tests/hub: a commit between a read
and its arrival (I3); leave during a read (I4); leave and join again during a read (the
old read belongs to the old object); the store trims what is being read (gap: 2500);
the stream restarts under a new epoch; the connection drains while a read is under way
(I5).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from service.errors import StoreError
from service.model import (
    Channel,
    Draft,
    HistoryPage,
    Joined,
    Position,
    Publication,
)
from service.ports import AppendDone, Committed, History, Store
from service.protocol import json as wire
from service.recovery import PIECE, is_recovered, take_piece
from service.settings import ClientSettings

__all__ = ["Hub", "Member", "Subscription"]


class Member(Protocol):
    """A connection as the hub knows it.

    Attributes:
        behind: Its subscriptions that are behind; kept by the hub. The member calls
            `Hub.advance` for each whenever all it was handed has been written.
    """

    behind: set[Subscription]

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


class Subscription:
    """One member in one channel."""

    __slots__ = (
        "epoch",
        "history",
        "left",
        "live",
        "member",
        "next",
        "reading",
        "topic",
    )

    def __init__(self, topic: _Topic, member: Member, history: History) -> None:
        self.topic = topic
        self.member = member
        self.history = history
        self.next = 0  # the offset expected next; 0 without history
        self.epoch = ""
        self.live = False
        self.reading = False
        self.left = False


class _Topic:
    """A channel that somebody listens to."""

    __slots__ = ("channel", "epoch", "quoted", "seen", "subscriptions")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.quoted = wire.quote(channel)
        self.seen = 0  # the newest offset that the listener was told of,
        self.epoch = ""  # in this epoch
        self.subscriptions: set[Subscription] = set()


JoinDone = Callable[[Joined | StoreError], None]
ReadDone = Callable[[HistoryPage | StoreError], None]
Spawn = Callable[[Awaitable[None]], None]


class Hub:
    """Channels, their listeners, and the way from a publisher to them.

    Args:
        store: Where publications with history live.
        settings: Limits of each client.
        spawn: Runs a coroutine in the background, tracked and bounded by its caller.
    """

    def __init__(self, store: Store, settings: ClientSettings, spawn: Spawn) -> None:
        self._store = store
        self._settings = settings
        self._spawn = spawn
        self._topics: dict[Channel, _Topic] = {}

    @property
    def channels(self) -> int:
        """Channels that somebody listens to."""
        return len(self._topics)

    @property
    def subscriptions(self) -> int:
        """Subscriptions of all connections."""
        return sum(len(topic.subscriptions) for topic in self._topics.values())

    # Publishing.

    def publish(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        """Publish to *channel*; *done* is told of the outcome, later."""
        self._store.append(channel, draft, history, done)

    def committed(self, batch: Sequence[Committed]) -> None:
        """Deliver what the store has made durable (its `CommitListener`)."""
        topics = self._topics
        for channel, publication, epoch in batch:
            topic = topics.get(channel)
            if topic is not None:
                self._deliver(topic, publication, epoch)

    def _deliver(self, topic: _Topic, publication: Publication, epoch: str) -> None:
        offset = publication.offset
        text = wire.publication_push(topic.quoted, publication)
        if offset == 0:
            for subscription in tuple(topic.subscriptions):
                if subscription.live or subscription.next:
                    subscription.member.put(text)
            return
        topic.seen = offset
        topic.epoch = epoch
        # A copy: a member that overflows leaves while we are going round.
        for subscription in tuple(topic.subscriptions):
            if not subscription.live:
                continue
            if offset == subscription.next and epoch == subscription.epoch:
                subscription.next = offset + 1
                subscription.member.put(text)
            elif offset > subscription.next or epoch != subscription.epoch:
                subscription.live = False
                subscription.member.behind.add(subscription)
                self.advance(subscription)

    # Joining and leaving.

    def join(
        self,
        channel: Channel,
        member: Member,
        history: History,
        asked: Position | None,
        done: JoinDone,
    ) -> Subscription:
        """Add *member* to *channel*.

        Args:
            channel: The channel.
            member: The connection.
            history: The channel's history settings.
            asked: Recover from here; None starts at the top.
            done: Called once, possibly before this returns, and before anything is
                written for the channel. Not called if the subscription was left
                before. With a `StoreError` the subscription is gone.

        Returns:
            The subscription, for `leave`.
        """
        topic = self._topics.get(channel)
        if topic is None:
            topic = self._topics[channel] = _Topic(channel)
        subscription = Subscription(topic, member, history)
        topic.subscriptions.add(subscription)
        if history.size == 0:
            done(Joined(None, None))
            subscription.live = True
            return subscription

        def joined(page: HistoryPage | StoreError) -> None:
            if not subscription.left:
                self._joined(subscription, asked, page, done)

        since = 0 if asked is None else asked.offset
        limit = 0 if asked is None else PIECE
        self.read(channel, history, since, limit, joined)
        return subscription

    def _joined(
        self,
        subscription: Subscription,
        asked: Position | None,
        page: HistoryPage | StoreError,
        done: JoinDone,
    ) -> None:
        if isinstance(page, StoreError):
            self.leave(subscription)
            done(page)
            return
        recovered: list[Publication] | None = None
        if asked is not None and is_recovered(
            asked, page, self._settings.recovery_limit
        ):
            recovered = take_piece(page.publications, self._settings.recovery_size)
            subscription.next = asked.offset + len(recovered) + 1
        else:
            subscription.next = page.top.offset + 1
        subscription.epoch = page.top.epoch
        done(Joined(page.top, recovered))
        if not subscription.left:
            self._settle(subscription, page.top)

    def leave(self, subscription: Subscription) -> None:
        """Take a subscription out; nothing is written for it any more."""
        subscription.left = True
        subscription.live = False
        subscription.member.behind.discard(subscription)
        topic = subscription.topic
        topic.subscriptions.discard(subscription)
        # The same channel may have a newer topic object by now.
        if not topic.subscriptions and self._topics.get(topic.channel) is topic:
            del self._topics[topic.channel]

    # Catching up.

    def _settle(self, subscription: Subscription, top: Position) -> None:
        """Make a subscription live if it has everything, else leave it behind."""
        topic = subscription.topic
        newest = top.offset
        if topic.epoch == top.epoch and topic.seen > newest:
            newest = topic.seen
        if subscription.next > newest:
            subscription.live = True
            subscription.member.behind.discard(subscription)
        else:
            subscription.member.behind.add(subscription)

    def advance(self, subscription: Subscription) -> None:
        """Hand the next piece to a subscription that is behind, if there is room.

        One piece a call: the member calls again when it has written that.
        """
        if subscription.reading or subscription.left or not subscription.member.idle:
            return
        subscription.reading = True

        def arrived(page: HistoryPage | StoreError) -> None:
            subscription.reading = False
            if not subscription.left:
                self._arrived(subscription, page)

        self.read(
            subscription.topic.channel,
            subscription.history,
            subscription.next - 1,
            PIECE,
            arrived,
        )

    def _arrived(
        self, subscription: Subscription, page: HistoryPage | StoreError
    ) -> None:
        if (
            isinstance(page, StoreError)
            or page.top.epoch != subscription.epoch
            or page.top.offset < subscription.next - 1
        ):
            self._lose(subscription)
            return
        piece = take_piece(page.publications, self._settings.recovery_size)
        topic = subscription.topic
        for publication in piece:
            if subscription.left:
                return  # the member was closed for being slow
            if publication.offset != subscription.next:
                self._lose(subscription)
                return
            subscription.next = publication.offset + 1
            subscription.member.put(wire.publication_push(topic.quoted, publication))
        if not piece and page.top.offset >= subscription.next:
            self._lose(subscription)  # trimmed: what is missing is gone for good
            return
        self._settle(subscription, page.top)

    def _lose(self, subscription: Subscription) -> None:
        self.leave(subscription)
        subscription.member.lost(subscription.topic.channel)

    # Reading.

    def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        done: ReadDone,
        *,
        reverse: bool = False,
    ) -> None:
        """Read kept publications; *done* is called once, at once if in memory."""
        if not reverse:
            page = self._store.peek(channel, history, since or 0, limit)
            if page is not None:
                done(page)
                return
        self._spawn(self._read(channel, history, since, limit, done, reverse=reverse))

    async def _read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        done: ReadDone,
        *,
        reverse: bool,
    ) -> None:
        outcome: HistoryPage | StoreError
        try:
            outcome = await self._store.read(
                channel, history, since, limit, reverse=reverse
            )
        except StoreError as error:
            outcome = error
        done(outcome)

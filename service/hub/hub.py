"""Who listens to what, and delivery in offset order, each offset once.

Whatever feeds the hub may be late, doubled or reordered: per subscription it keeps
the next expected offset. A lower one is dropped, an equal one is written, and a higher
one shows a gap, which is filled from the store (`catchup`). A gap that cannot be
filled ends the subscription: the client recovers, or is told.

Invariants, all on the event loop (`catchup` has the others):

I1 Nothing is written for a channel before its subscribe reply: `done` is called
   before `release`, and only what is released is written to.
I2 ``next`` only grows, by one per publication written, while the epoch stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.core.errors import StoreError
from service.core.model import (
    Channel,
    Draft,
    HistoryPage,
    Joined,
    Position,
    Publication,
    SubscriberInfo,
)
from service.core.ports import AppendDone, Committed, History, Store
from service.core.position import PIECE, is_recovered, take_piece
from service.hub.catchup import CatchUp, Spawn
from service.hub.publish_metrics import PublishMetrics
from service.hub.subscription import Member, Subscription, Topic
from service.protocol import replies
from service.settings import ClientSettings

__all__ = ["Hub", "JoinDone"]

JoinDone = Callable[[Joined | StoreError], bool]
"""Told of a join's outcome; False refuses it: nobody learns that it was there."""


class Hub:
    """Channels, their listeners, and the way from a publisher to them.

    Args:
        store: Where publications with history live.
        settings: Limits of each client.
        spawn: Runs a coroutine in the background, tracked by its caller.
        meter: Counts and times publications.

    Attributes:
        taken_over: Places of lost connections that their user's next ones took.
    """

    def __init__(
        self,
        store: Store,
        settings: ClientSettings,
        spawn: Spawn,
        meter: PublishMetrics,
    ) -> None:
        self._store = store
        self._settings = settings
        self._meter = meter
        self._topics: dict[Channel, Topic] = {}
        self._catchup = CatchUp(store, settings.recovery_size, spawn, self._end)
        self.taken_over = 0
        self.advance = self._catchup.advance
        self.read = self._catchup.read

    # Publishing.

    def publish(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        """Publish to *channel*; *done* is told of the outcome, later."""
        self._store.append(channel, draft, history, self._meter.publishing(done))

    def committed(self, batch: Sequence[Committed]) -> None:
        """Deliver what the store has made durable (its `CommitListener`)."""
        self._meter.committed(len(batch))
        topics = self._topics
        for channel, publication, epoch in batch:
            topic = topics.get(channel)
            if topic is not None:
                self._deliver(topic, publication, epoch)

    def _deliver(self, topic: Topic, publication: Publication, epoch: str) -> None:
        offset = publication.offset
        text = replies.publication_push(topic.quoted, publication)
        if offset == 0:
            for subscription in tuple(topic.subscriptions):
                if subscription.joined and not subscription.left:
                    subscription.member.put(text)
            return
        if epoch != topic.epoch:
            topic.epoch = epoch
            topic.turn += 1
            topic.seen = offset
        elif offset > topic.seen:
            topic.seen = offset
        # A copy: a member that overflows leaves while we are going round.
        for subscription in tuple(topic.subscriptions):
            if not subscription.live:
                continue
            if offset == subscription.next and epoch == subscription.epoch:
                subscription.next = offset + 1
                subscription.member.put(text)
            elif offset > subscription.next or epoch != subscription.epoch:
                self._catchup.fall_behind(subscription)

    # Joining and leaving.

    def join(
        self,
        channel: Channel,
        member: Member,
        listener: SubscriberInfo,
        history: History,
        asked: Position | None,
        done: JoinDone,
        *,
        held: bool = False,
    ) -> Subscription:
        """Add *member* to *channel*.

        Args:
            channel: The channel.
            member: The connection.
            listener: Who it is, and how it listens.
            history: The channel's history settings.
            asked: Recover from here; None starts at the top.
            done: Called once, possibly before this returns, and before anything is
                written for the channel. Not called if the subscription was left
                before. With a `StoreError` the subscription is gone.
            held: Write nothing after *done* either, until `release`: the reply is
                still waiting for other channels.

        Returns:
            The subscription, for `leave`.
        """
        topic = self._topics.get(channel)
        if topic is None:
            topic = self._topics[channel] = Topic(channel)
        subscription = Subscription(topic, member, listener, history)
        topic.subscriptions.add(subscription)

        def joined(page: HistoryPage | StoreError) -> None:
            if subscription.left:
                return
            if isinstance(page, StoreError):
                self.leave(subscription)
                done(page)
            elif not done(self._place(subscription, asked, page)):
                self.leave(subscription)
            elif not held:
                self.release(subscription)

        if history.size == 0:
            if not done(Joined(None, None)):
                self.leave(subscription)
            elif not held:
                self.release(subscription)
        elif asked is None:
            self.read(channel, history, 0, 0, joined)
        else:
            self.read(channel, history, asked.offset, PIECE, joined)
        return subscription

    def _place(
        self, subscription: Subscription, asked: Position | None, page: HistoryPage
    ) -> Joined:
        """Decide whether the client is recovered, and where it stands."""
        recovered: list[Publication] | None = None
        limit = self._settings.recovery_limit
        if asked is not None and is_recovered(asked, page, limit):
            # What does not fit beside other replies that wait follows as pushes.
            space = min(self._settings.recovery_size, subscription.member.space)
            recovered = take_piece(page.publications, space) if space > 0 else []
            subscription.next = asked.offset + len(recovered) + 1
        else:
            subscription.next = page.top.offset + 1
        subscription.epoch = page.top.epoch
        subscription.top = page.top
        return Joined(page.top, recovered)

    def release(self, subscription: Subscription) -> None:
        """Begin to write to a subscription whose reply is on its way."""
        if subscription.left:
            return
        subscription.joined = True
        listener = subscription.listener
        if listener.sends_join_leave:
            # Before settling, which may end the subscription, and tell of that.
            topic = subscription.topic
            self._announce(topic, replies.join_push(topic.quoted, listener.info))
        if subscription.topic.parked:
            self._take_over(subscription)
        if subscription.left:
            return
        if subscription.history.size == 0:
            subscription.live = True
        else:
            self._catchup.settle(subscription, subscription.top)

    def leave(self, subscription: Subscription) -> None:
        """Take a subscription out; nothing is written for it any more."""
        if subscription.left:
            return
        self._take_out(subscription)
        self._let_go(subscription.topic)
        if subscription.joined:
            self._tell_leave(subscription)

    def park(self, subscription: Subscription) -> bool:
        """Take a subscription out as `leave` does, but let it be seen: it may be back.

        Returns:
            Whether there is anything to be seen; then `unpark` follows.
        """
        listener = subscription.listener
        seen = listener.user and (listener.present or listener.sends_join_leave)
        if subscription.left or not subscription.joined or not seen:
            self.leave(subscription)
            return False
        self._take_out(subscription)
        subscription.topic.parked[subscription] = None
        return True

    def unpark(self, subscription: Subscription) -> None:
        """Let a parked subscription be seen no more, if nobody took its place."""
        topic = subscription.topic
        if subscription in topic.parked:
            del topic.parked[subscription]
            self._let_go(topic)
            self._tell_leave(subscription)

    def _take_over(self, subscription: Subscription) -> None:
        """Let the user's new subscription have the place of the one parked first."""
        user = subscription.listener.user
        for parked in subscription.topic.parked:
            if parked.listener.user == user:
                self.taken_over += 1
                self.unpark(parked)
                return

    def _take_out(self, subscription: Subscription) -> None:
        subscription.left = True
        subscription.live = False
        subscription.member.behind.pop(subscription, None)
        subscription.topic.subscriptions.discard(subscription)

    def _let_go(self, topic: Topic) -> None:
        # The same channel may have a newer topic object by now.
        empty = not topic.subscriptions and not topic.parked
        if empty and self._topics.get(topic.channel) is topic:
            del self._topics[topic.channel]

    def _tell_leave(self, subscription: Subscription) -> None:
        topic, listener = subscription.topic, subscription.listener
        if listener.sends_join_leave:
            self._announce(topic, replies.leave_push(topic.quoted, listener.info))

    def _announce(self, topic: Topic, text: str) -> None:
        for subscription in tuple(topic.subscriptions):
            hears = subscription.joined and subscription.listener.receives_join_leave
            if hears and not subscription.left:
                subscription.member.put(text)

    def _end(self, subscription: Subscription) -> None:
        self.leave(subscription)
        subscription.member.lost(subscription.topic.channel)

    # Looking.

    def check_positions(self) -> None:
        """Compare every channel with the top of its stream; catch up where behind.

        Called by a timer. Costs one read a channel, from memory as a rule.
        """
        for topic in tuple(self._topics.values()):
            for subscription in topic.subscriptions:
                if subscription.history.size:
                    self._catchup.check(topic, subscription.history)
                    break

    def present(self, channel: Channel) -> list[SubscriberInfo]:
        """Return those who are subscribed to *channel* and shown in presence."""
        topic = self._topics.get(channel)
        if topic is None:
            return []
        return [
            subscription.listener
            for subscription in (*topic.parked, *topic.subscriptions)
            if subscription.joined and subscription.listener.present
        ]

    def counts(self) -> dict[Channel, int]:
        """Return how many subscriptions each channel has; none that has none."""
        return {
            channel: len(topic.subscriptions)
            for channel, topic in self._topics.items()
            if topic.subscriptions
        }

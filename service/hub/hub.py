"""The hub: which connection is subscribed to which channel, and delivery to them.

Publications are delivered in offset order, each offset once. Whatever feeds the hub may
be late, doubled or reordered: each subscription keeps the offset that it expects next.
A lower one is dropped, an equal one is written, and a higher one shows a gap, which is
filled from the store (`catchup`). A gap that cannot be filled ends the subscription:
the client recovers, or is told.

Invariants, all on the event loop (`catchup`, `deltas` and `announcements` have the
others):

I1 Nothing is written for a channel before `activate`, which the member calls when its
   subscribe reply is on its way.
I2 ``next`` only grows, by one per publication written, while the epoch stays.
I6 A call that has its outcome at once returns it. One that returns none calls *done*
   once, later, never inside the call.
I10 What other processes committed never changes ``Topic.seen`` or ``epoch``, by which a
   page of the store is judged: it may be late, doubled or of a stream that is over. It
   is written where it is next; elsewhere it makes the subscription read once.
I7 `Member.put` may end any member, which then calls `leave`. So every loop goes over a
   copy, and looks at each subscription before it writes.

Interleavings that could break them, each a test in tests/hub: a commit, a restart of
the stream or a leave between the outcome of a join and `activate` (I1); leave before
the outcome (I6: *done* is not called then); a member that is ended by the push of a
publication, of a join or of another's leave (I7); a hint between the read of a join and
its `activate`, one of an older epoch, and one for an offset that does not exist (I10).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from _speedups import deliver
from service.core.cluster import PresenceRow
from service.core.errors import StoreError
from service.core.model import (
    Channel,
    ClientId,
    Draft,
    HistoryPage,
    Joined,
    Position,
    Publication,
    RawJson,
    SubscriberInfo,
)
from service.core.ports import (
    NO_HISTORY,
    AppendDone,
    Clock,
    Committed,
    History,
    PresenceDone,
    Store,
)
from service.core.position import PIECE, start_of
from service.core.priority import DroppableText, Priority
from service.core.shedding import Shedding
from service.hub.announcements import Announcements
from service.hub.catchup import CatchUp, Spawn
from service.hub.deltas import DeltaPushes
from service.hub.position_check import PositionCheck
from service.hub.publish_metrics import PublishMetrics
from service.hub.subscription import Member, Remote, Subscription, Topic
from service.protocol import replies
from service.settings import ClientSettings

__all__ = ["Hub"]

JoinDone = Callable[[Joined | StoreError], None]


class SharedPresence(Protocol):
    """Shows the subscribers of this process to others, and theirs here.

    Of those that others may see, each is entered once, perhaps lost, and left.
    """

    def entered(self, subscription: Subscription) -> None:
        """Take note of a subscriber that others may see."""

    def lost(self, subscription: Subscription) -> None:
        """Take note that a subscriber's connection was lost, and may come back."""

    def left(self, subscription: Subscription) -> None:
        """Take note that a subscriber has left."""

    def watch(self, topic: Topic) -> None:
        """Keep a channel's subscribers of other processes up to date from now on."""

    def look(
        self, channel: Channel, looker: Subscription | None, done: PresenceDone
    ) -> list[SubscriberInfo] | None:
        """Return who is present everywhere, or call *done* with it later."""


class Hub:
    """The channels of one process that have subscriptions.

    Args:
        store: Where publications with history live.
        settings: Limits of each client.
        clock: Times the position check, and joins and leaves.
        spawn: Runs a coroutine in the background, never inside this call.
        metrics: Counts and times publications.
        shedding: Tells which pushes are not made while the process is overloaded.
        batch_window: Returns the batch window of a channel, in seconds.

    Attributes:
        announcements: Joins and leaves that subscribers are told of; its owner stops
            it.
        sharing: Makes the subscribers of several processes known to each other; None
            where this is the only one.
        position_check: Compares the channels with the store; its owner starts it.
        advance: `CatchUp.advance`, for members.
        read: `CatchUp.read`.
    """

    def __init__(
        self,
        store: Store,
        settings: ClientSettings,
        clock: Clock,
        spawn: Spawn,
        metrics: PublishMetrics,
        shedding: Shedding,
        batch_window: Callable[[Channel], float],
    ) -> None:
        self._store = store
        self._shedding = shedding
        self._settings = settings
        self._metrics = metrics
        self._batch_window = batch_window
        self._topics: dict[Channel, Topic] = {}
        self._catchup = CatchUp(store, settings.recovery_size, spawn, self._end)
        self.announcements = Announcements(clock, shedding)
        self.sharing: SharedPresence | None = None
        self.position_check = PositionCheck(
            self._topics, self._catchup, clock, settings.position_check
        )
        self.advance = self._catchup.advance
        self.read = self._catchup.read

    # Publishing.

    def knows(self, channel: Channel) -> bool:
        """Tell whether the channel is known to have had a publication that was kept."""
        topic = self._topics.get(channel)
        return (topic is not None and topic.seen > 0) or self._store.knows(channel)

    def publish(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        """Publish to *channel*; *done* is told of the outcome, later."""
        self._store.append(channel, draft, history, self._metrics.publishing(done))

    def committed(self, batch: Sequence[Committed]) -> None:
        """Deliver what is durable now (this is the store's `CommitListener`)."""
        self._metrics.committed(len(batch))
        topics = self._topics
        for channel, publication, epoch, delta, urgent in batch:
            topic = topics.get(channel)
            if topic is not None:
                window = 0.0 if urgent else topic.batch_window
                self._deliver(topic, publication, epoch, window, delta=delta)

    def told(self, batch: Sequence[Committed]) -> None:
        """Deliver what other processes committed (`ports.Hearer`)."""
        for channel, publication, epoch, delta, urgent in batch:
            topic = self._topics.get(channel)
            if topic is not None:
                window = 0.0 if urgent else topic.batch_window
                self._deliver(
                    topic, publication, epoch, window, delta=delta, ours=False
                )

    def moved(self, channel: Channel, top: Position) -> None:
        """Read what is missing up to *top* (`ports.Hearer`)."""
        topic = self._topics.get(channel)
        if topic is not None:
            topic.note_move(top)
            self._catchup.compare(topic, top)

    def _deliver(
        self,
        topic: Topic,
        publication: Publication,
        epoch: str,
        window: float,
        *,
        delta: bool,
        ours: bool = True,
    ) -> None:
        offset = publication.offset
        if offset == 0:
            self._deliver_without_offset(topic, publication, window, delta=delta)
            return
        text = replies.publication_push(topic.quoted, publication)
        deltas = None
        if topic.deltas:
            deltas = DeltaPushes(topic, publication, delta=delta)
        if not ours:
            topic.note_move(Position(offset, epoch))
        elif epoch != topic.epoch:
            topic.epoch = epoch
            topic.generation += 1
            topic.seen = offset
        elif offset > topic.seen:
            topic.seen = offset
        subscriptions = tuple(topic.subscriptions)
        if deltas is None and not window:
            for subscription in deliver(subscriptions, offset, epoch, text):
                if subscription.live:  # it may have left meanwhile
                    self._catchup.fall_behind(subscription)
            return
        for subscription in subscriptions:
            if subscription.live:
                self._deliver_to(subscription, offset, epoch, text, deltas, window)

    def _deliver_to(
        self,
        subscription: Subscription,
        offset: int,
        epoch: str,
        text: str,
        deltas: DeltaPushes | None,
        window: float,
    ) -> None:
        """Deliver in a channel with deltas or a batch window."""
        if offset == subscription.next and epoch == subscription.epoch:
            subscription.next = offset + 1
            _put(subscription, text, deltas, window)
        elif offset > subscription.next or epoch != subscription.epoch:
            self._catchup.fall_behind(subscription)

    def _deliver_without_offset(
        self, topic: Topic, publication: Publication, window: float, *, delta: bool
    ) -> None:
        if self._shedding.sheds_publication():
            return
        push: str = replies.publication_push(topic.quoted, publication)
        text = DroppableText(push, Priority.PUBLICATION)
        deltas = None
        if topic.deltas:
            deltas = DeltaPushes(topic, publication, delta=delta)
        for subscription in tuple(topic.subscriptions):
            if not subscription.joined or subscription.left:
                continue
            _put(subscription, text, deltas, window)

    def notify(
        self,
        channel: Channel,
        data: RawJson,
        *,
        priority: Priority,
        info: RawJson | None = None,
        but: SubscriberInfo | None = None,
    ) -> None:
        """Push to the subscribers of this process what is not stored anywhere.

        Args:
            channel: The channel.
            data: The payload.
            priority: How soon it is dropped where a queue is full.
            info: Who it comes from, as in a publication.
            but: A subscriber that is not told, nor others of its user.
        """
        topic = self._topics.get(channel)
        if topic is None:
            return
        publication = Publication(0, data, info)
        text = DroppableText(
            replies.publication_push(topic.quoted, publication), priority
        )
        for subscription in tuple(topic.subscriptions):
            if not subscription.joined or subscription.left:
                continue
            if but is not None and _is_same(subscription.subscriber, but):
                continue
            # It may be dropped, so nobody knows what the next delta would be against.
            subscription.base = None
            subscription.put(text)

    # Members.

    def subscription_of(
        self, channel: Channel, client: ClientId
    ) -> Subscription | None:
        """Return a client's subscription to a channel, if it has joined."""
        topic = self._topics.get(channel)
        for subscription in topic.subscriptions if topic is not None else ():
            if subscription.subscriber.client == client and subscription.joined:
                return subscription
        return None

    def watch(
        self, subscription: Subscription, left: Callable[[Subscription], None]
    ) -> None:
        """Call *left* when a subscription leaves; one watches it."""
        subscription.topic.watched[subscription] = left

    @staticmethod
    def unwatch(subscription: Subscription) -> None:
        """Watch a subscription no more; harmless when nobody does."""
        subscription.topic.watched.pop(subscription, None)

    # Joining and leaving.

    def join(
        self,
        channel: Channel,
        member: Member,
        subscriber: SubscriberInfo,
        history: History,
        since: Position | None,
        done: JoinDone,
    ) -> tuple[Subscription, Joined | None]:
        """Add *member* to *channel*, where nobody sees it before `activate`.

        Args:
            channel: The channel.
            member: The connection.
            subscriber: Its client, and what it is shown of the others.
            history: The channel's history settings.
            since: Recover from here; None starts at the top.
            done: Called with the outcome if none is returned; not if the subscription
                was left before. With a `StoreError`, the hub has left it.

        Returns:
            The subscription, and the outcome if it is known at once. After a `Joined`,
            `activate` or `leave` follows.
        """
        topic = self._topics.get(channel)
        if topic is None:
            topic = self._topics[channel] = Topic(channel, self._batch_window(channel))
            self._store.follow(channel, history)
        subscription = Subscription(topic, member, subscriber, history)
        topic.subscriptions.add(subscription)
        if subscriber.delta:
            topic.deltas += 1
        if history.size == 0:
            return subscription, Joined(None, None)

        def read(page: HistoryPage | StoreError) -> None:
            if subscription.left:
                return
            if isinstance(page, StoreError):
                self.leave(subscription)
                done(page)
            else:
                done(self._place(subscription, since, page))

        if since is None:
            page = self.read(channel, history, 0, 0, read)
        else:
            page = self.read(channel, history, since.offset, PIECE, read)
        if page is None:
            return subscription, None
        return subscription, self._place(subscription, since, page)

    def _place(
        self, subscription: Subscription, since: Position | None, page: HistoryPage
    ) -> Joined:
        """Decide whether the client is recovered, and which offset comes next."""
        recovered: list[Publication] | None = None
        start = start_of(since, page, self._settings.recovery_limit)
        if start.missed is not None:
            # Publications that do not fit follow as pushes: clients wait 5 s for a
            # reply, and as long as it takes for those.
            space = min(self._settings.recovery_size, subscription.member.space)
            recovered, size = subscription.piece_of(start.missed, space, least=0)
            subscription.member.give(size)
            if recovered and subscription.subscriber.delta:
                subscription.base = recovered[-1].data
        subscription.next = start.offset + len(recovered or ()) + 1
        subscription.epoch = page.top.epoch
        subscription.top = page.top
        return Joined(page.top, recovered)

    def activate(self, subscription: Subscription) -> None:
        """Begin to write to a subscription whose reply is on its way."""
        if subscription.left:
            return
        subscription.joined = True
        topic, announcements = subscription.topic, self.announcements
        announcements.listen(subscription)
        announcements.note_join(subscription)
        if topic.in_grace or topic.remote:
            self._take_over(subscription)
        if self.sharing is not None:
            if _is_seen(subscription.subscriber):
                self.sharing.entered(subscription)
            if subscription in topic.listeners:
                self.sharing.watch(topic)
        # Before settling, which may end the subscription.
        announcements.announce(topic)
        if subscription.left:
            return
        if subscription.history.size == 0:
            subscription.live = True
        else:
            self._catchup.settle(subscription, subscription.top)
            if subscription.moves != topic.moves and not subscription.live:
                self.advance(subscription)  # its page may be older than a hint

    def leave(self, subscription: Subscription) -> None:
        """Take a subscription out; nothing is written for it any more."""
        if subscription.left:
            return
        self._take_out(subscription)
        self._drop_if_empty(subscription.topic)
        if subscription.joined:
            self._has_left(subscription)
            self.announcements.announce(subscription.topic)

    def begin_grace(self, subscription: Subscription) -> bool:
        """Take a subscription out, but keep it in presence and push no leave yet.

        Returns:
            Whether there is anything to keep; then `end_grace` follows. If not, it has
            left.
        """
        subscriber = subscription.subscriber
        seen = subscriber.user and _is_seen(subscriber)
        if subscription.left or not subscription.joined or not seen:
            self.leave(subscription)
            return False
        self._take_out(subscription)
        subscription.topic.in_grace[subscription] = None
        if self.sharing is not None:
            self.sharing.lost(subscription)
        return True

    def end_grace(self, subscription: Subscription) -> None:
        """Let a lost connection's subscription leave, unless it was taken over."""
        self.take_over(subscription)
        self.announcements.announce(subscription.topic)

    def take_over(self, lost: Subscription) -> None:
        """Let a lost connection's subscription leave for another; announce it later.

        Nothing happens if it has left.
        """
        topic = lost.topic
        if lost in topic.in_grace:
            del topic.in_grace[lost]
            self._drop_if_empty(topic)
            self._has_left(lost)

    def _take_over(self, subscription: Subscription) -> None:
        """Let the oldest subscription in grace of the same user leave for this one."""
        topic, user = subscription.topic, subscription.subscriber.user
        for lost in topic.in_grace:
            if lost.subscriber.user == user:
                self.take_over(lost)
                return
        if not user:
            return
        for client, remote in topic.remote.items():
            if remote.lost and remote.subscription.subscriber.user == user:
                del topic.remote[client]
                self.announcements.note_leave(remote.subscription)
                return

    def set_remote(self, topic: Topic, rows: Sequence[PresenceRow]) -> None:
        """Tell the listeners of a channel who came and went in other processes.

        Args:
            topic: The channel. If its remote subscribers were not known, nothing is
                told.
            rows: They, now.
        """
        notes, remote = self.announcements, topic.remote
        told, topic.shared = topic.shared, True
        here = {row.client for row in rows}
        for client in [one for one in remote if one not in here]:
            notes.note_leave(remote.pop(client).subscription)
        for row in rows:
            known = remote.get(row.client)
            if known is not None:
                known.node, known.lost = row.node, row.lost > 0
                known.subscription.subscriber.info = row.info
                continue
            subscriber = SubscriberInfo(
                row.client,
                row.user,
                row.info,
                present=row.present,
                sends_join_leave=row.announced,
            )
            subscription = Subscription(topic, _NOBODY, subscriber, NO_HISTORY)
            remote[row.client] = Remote(subscription, row.node, lost=row.lost > 0)
            if told:
                notes.note_join(subscription)
        notes.announce(topic)

    def _take_out(self, subscription: Subscription) -> None:
        subscription.left = True
        subscription.live = False
        subscription.member.behind.pop(subscription, None)
        topic = subscription.topic
        topic.subscriptions.discard(subscription)
        if subscription in topic.watched:
            topic.watched.pop(subscription)(subscription)
        self.announcements.forget(subscription)
        if subscription.subscriber.delta:
            topic.deltas -= 1
            if not topic.deltas:
                topic.newest = None

    def _drop_if_empty(self, topic: Topic) -> None:
        # The same channel may have a newer topic object by now.
        empty = not topic.subscriptions and not topic.in_grace
        if empty and self._topics.get(topic.channel) is topic:
            del self._topics[topic.channel]
            self._store.unfollow(topic.channel)

    def _has_left(self, subscription: Subscription) -> None:
        self.announcements.note_leave(subscription)
        if self.sharing is not None:
            self.sharing.left(subscription)

    def _end(self, subscription: Subscription) -> None:
        self.leave(subscription)
        subscription.member.lost(subscription.topic.channel)

    # Figures.

    def present(
        self, channel: Channel, looker: Subscription | None = None
    ) -> list[SubscriberInfo]:
        """Return the known subscribers of *channel* that are shown in presence.

        Args:
            channel: The channel.
            looker: The subscription to it that is shown them, if it is one.
        """
        topic = self._topics.get(channel)
        if topic is None:
            return []
        if looker is not None:
            self.announcements.looked(looker)
        return [
            subscription.subscriber
            for subscription in (*topic.in_grace, *topic.subscriptions)
            if subscription.joined and subscription.subscriber.present
        ] + [
            remote.subscription.subscriber
            for remote in topic.remote.values()
            if remote.subscription.subscriber.present
        ]

    def look(
        self, channel: Channel, done: PresenceDone, looker: Subscription | None = None
    ) -> list[SubscriberInfo] | None:
        """Return the subscribers of *channel* in all processes, or call *done* later.

        Args:
            channel: The channel.
            done: Called with them, if they are not returned.
            looker: The subscription to it that is shown them, if it is one.
        """
        if self.sharing is None:
            return self.present(channel, looker)
        return self.sharing.look(channel, looker, done)

    def counts(self) -> dict[Channel, int]:
        """Return how many subscriptions each channel has; none that has none."""
        return {
            channel: len(topic.subscriptions)
            for channel, topic in self._topics.items()
            if topic.subscriptions
        }


class _Nobody:
    """The member of a subscription of another process, to which nothing is written."""

    def __init__(self) -> None:
        self.behind: dict[Subscription, None] = {}

    @property
    def space(self) -> int:
        return 0

    def takes_more(self) -> bool:
        return False

    def give(self, size: int) -> None: ...

    def put(self, text: str, *, window: float = 0.0) -> None: ...

    def lost(self, channel: Channel) -> None: ...


_NOBODY = _Nobody()


def _is_seen(subscriber: SubscriberInfo) -> bool:
    """Return whether others may see a subscriber at all."""
    return subscriber.present or subscriber.sends_join_leave


def _put(
    subscription: Subscription, text: str, deltas: DeltaPushes | None, window: float
) -> None:
    """Write a push, or its delta where the subscriber asked for deltas."""
    push = text
    if deltas is not None and subscription.subscriber.delta:
        push = deltas.push_for(subscription)
    if window:
        subscription.put(push, window=window)
    else:
        subscription.put(push)


def _is_same(one: SubscriberInfo, other: SubscriberInfo) -> bool:
    """Return whether two subscribers are one client, or of one user."""
    return one.client == other.client or (one.user != "" and one.user == other.user)

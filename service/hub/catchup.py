"""Catch-up: bring a subscription from the offset it has reached to the newest one.

A subscription is *live* or *behind*. While it is behind, commits are neither written
to it nor buffered: they are in the store, and it reads them from there, a piece at a
time, whenever its connection takes more (`Member.takes_more`). A join with recovery, a
gap, and a slow link during recovery are all this one state; so there is no buffer that
could overflow.

Invariants, all on the event loop (numbered with those of `hub`):

I3 A live subscription has been handed everything that the hub was told of: it becomes
   live only in the same step in which a page up to the topic's newest committed offset
   (`Topic.seen`) was written, without an await in between; and only if no other process
   was said to have moved the top since that page's read began (`Topic.moves`).
I4 After `Hub.leave` returns, nothing is written for that subscription: every
   continuation looks at ``left`` first.
I5 At most one read is under way per subscription.

Interleavings that could break them, each a test in tests/hub: a commit between a read
and its arrival (I3); leave during a read (I4); leave and join again during a read (the
old read belongs to the old object); the store trims what is being read (gap: the
subscription ends); the stream restarts under a new epoch; the connection drains while
a read is under way (I5).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from service.core.errors import StoreError, StoreUnavailable
from service.core.model import Channel, HistoryPage, Position
from service.core.ports import History, ReadDone, Store
from service.core.position import PIECE
from service.hub.subscription import Subscription, Topic

__all__ = ["CatchUp", "Spawn"]

Spawn = Callable[[Awaitable[None]], object]


class CatchUp:
    """The reads of the hub, and the subscriptions that are behind.

    Args:
        store: Where publications are read.
        size: Bytes of publications handed over at once.
        spawn: Runs a coroutine in the background, never inside this call.
        end: Ends a subscription that cannot be brought up to date.
    """

    def __init__(
        self,
        store: Store,
        size: int,
        spawn: Spawn,
        end: Callable[[Subscription], None],
    ) -> None:
        self._store = store
        self._size = size
        self._spawn = spawn
        self._end = end

    def settle(self, subscription: Subscription, top: Position) -> None:
        """Make a subscription live if it has everything, else leave it behind."""
        topic = subscription.topic
        if subscription.generation != topic.generation and topic.epoch != top.epoch:
            # The stream restarted while *top* was being read.
            self._skip_or_end(subscription, Position(topic.seen, topic.epoch))
            return
        newest = top.offset
        if topic.epoch == top.epoch and topic.seen > newest:
            newest = topic.seen
        if subscription.moves != topic.moves:
            # Others were said to have moved the top since its last read began, which
            # may not have seen that. The next read has, so this happens once for each.
            moved = topic.moved
            if moved.epoch != top.epoch or moved.offset > newest:
                newest = max(newest, subscription.next)
        behind = subscription.member.behind
        behind.pop(subscription, None)
        if subscription.next > newest:
            subscription.live = True
            self._share_base(subscription)
        else:
            behind[subscription] = None  # last: others are served before it again

    @staticmethod
    def _share_base(subscription: Subscription) -> None:
        """Let live subscriptions hold the same text, so that they share deltas (I9)."""
        topic, base = subscription.topic, subscription.base
        if base is not None:
            if base != topic.newest:
                topic.newest = base
            subscription.base = topic.newest

    def fall_behind(self, subscription: Subscription) -> None:
        """Take a live subscription that has a gap, and begin to fill it."""
        subscription.live = False
        subscription.member.behind[subscription] = None
        self.advance(subscription)

    def advance(self, subscription: Subscription) -> None:
        """Hand the next piece to a subscription that is behind, if there is space.

        One piece a call: the member calls again when it takes more.
        """
        if subscription.reading or subscription.left:
            return
        if not subscription.member.takes_more():
            return
        topic = subscription.topic
        subscription.reading = True
        subscription.generation = topic.generation
        subscription.moves = topic.moves
        told = topic.seen if topic.epoch == subscription.epoch else 0

        def done(page: HistoryPage | StoreError) -> None:
            subscription.reading = False
            if subscription.left:
                return
            if isinstance(page, StoreError):
                self._end(subscription)
            else:
                self._hand_over(subscription, page, told)

        since = subscription.next - 1
        page = self.read(
            topic.channel, subscription.history, since, subscription.portion, done
        )
        if page is not None:
            done(page)

    def _hand_over(
        self, subscription: Subscription, page: HistoryPage, told: int
    ) -> None:
        if (
            page.top.epoch != subscription.epoch
            or page.top.offset < subscription.next - 1
        ):
            self._skip_or_end(subscription, page.top)
            return
        space = min(self._size, subscription.member.space)
        if space <= 0:
            return  # filled meanwhile; it comes back when it takes more
        piece, size = subscription.piece_of(page.publications, space, least=1)
        # A slow link gets a few at a time, and need not read many for that.
        cut = len(piece) < len(page.publications)
        subscription.portion = min(PIECE, 2 * len(piece)) if cut else PIECE
        subscription.member.give(size)
        for publication in piece:
            if subscription.left:
                return  # the member was closed for being slow
            if publication.offset != subscription.next:
                self._skip_or_end(subscription, page.top)
                return
            subscription.next = publication.offset + 1
            subscription.member.put(subscription.push_of(publication))
        if subscription.left:
            return
        if not piece and max(page.top.offset, told) >= subscription.next:
            # Trimmed: the store does not have what is missing any more.
            self._skip_or_end(subscription, page.top)
            return
        self.settle(subscription, page.top)
        if not piece and not subscription.live:
            # The hub was told of more during the read. Nothing was written, so nobody
            # would come back to it. The recursion ends: the next read sees that.
            self.advance(subscription)

    def _skip_or_end(self, subscription: Subscription, top: Position) -> None:
        """Handle a gap: end a positioned subscription, let any other go on at *top*."""
        if subscription.subscriber.positioned:
            self._end(subscription)
            return
        topic = subscription.topic
        newest = topic.seen if topic.epoch == top.epoch else 0
        subscription.next = max(top.offset, newest) + 1
        subscription.epoch = top.epoch
        subscription.generation = topic.generation
        subscription.base = None
        self.settle(subscription, top)
        if not subscription.live:
            self.advance(subscription)  # a hint came during the read

    def compare(self, topic: Topic, top: Position) -> None:
        """Catch up the live subscriptions of *topic* that have not reached *top*."""
        for subscription in tuple(topic.subscriptions):
            if subscription.live and (
                subscription.next <= top.offset or subscription.epoch != top.epoch
            ):
                self.fall_behind(subscription)

    def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        done: ReadDone,
        *,
        reverse: bool = False,
    ) -> HistoryPage | None:
        """Read kept publications.

        Returns:
            The page, if it is in memory. None if it is not: then *done* is called
            once, later, never inside this call.
        """
        if not reverse:
            page = self._store.peek(channel, history, since or 0, limit)
            if page is not None:
                return page
        self._spawn(self._read(channel, history, since, limit, done, reverse=reverse))
        return None

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
        except Exception:
            done(StoreUnavailable("the read failed"))
            raise  # to where background tasks are logged
        done(outcome)

"""Viewers of a thread: cursors in its log, woken by the hub.

A `Follower` has a position and no queue. What it is handed is read from the log, out of
the store's memory as a rule, when it asks for more: so a viewer that is slow takes no
memory, and delays nobody. One that is so slow that the history has passed it is told
that its place is `Gone`; it joins anew, with a snapshot or a prelude. That is the
discipline of a socket's outbox: bounded, cut when it is slow, resumed by offset.

A `Feed` is the one member of a thread's channel in the hub, for all its followers. It
is told of what other servers commit as every subscriber is.

Invariants, on the event loop:

F1 A follower is handed each offset after its position once, in order.
F2 A follower that waits is woken by every commit after its position: it joins before
   it reads, and forgets earlier wakes before both.
F3 A feed that the hub leaves behind has a read under way, or its followers are awake,
   and the first that asks for more lets the hub go on (`Feed.join`).

Interleavings that could break them, each a test in tests/agents/test_feed.py, where
they are played in every order: commits, and the hub being told of them, before, during
and after the read of the join and the read of a follower; commits while the hub catches
up; a stream that restarts under a new epoch while a follower waits; the history passing
a feed that is behind; a read of the hub that fails; the last follower leaving during
the read of the join.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.agents.errors import Gone
from service.agents.thread import Thread
from service.core.errors import StoreError
from service.core.model import (
    Channel,
    ClientId,
    Joined,
    Position,
    Publication,
    RawJson,
    SubscriberInfo,
    UserId,
)
from service.core.ports import Clock, Store
from service.hub.hub import Hub
from service.hub.subscription import Subscription

__all__ = ["Feed", "Follower"]

PIECE = 64  # publications handed over at once (count)
_UNLIMITED = 2**40  # bytes: what a feed is handed is dropped, for it only wakes
_SHARED_POLL = 1.0  # s between looks at a store that other servers write to


class Feed:
    """The followers of one thread, as a member of its channel.

    Args:
        thread: The thread.
        hub: Tells of commits.
        closed: Called when the last follower is gone.
    """

    def __init__(
        self, thread: Thread, hub: Hub, closed: Callable[[Thread], None]
    ) -> None:
        self.behind: dict[Subscription, None] = {}
        self._thread = thread
        self._hub = hub
        self._closed = closed
        self._followers: set[Follower] = set()
        self._subscription: Subscription | None = None

    def add(self, follower: Follower) -> None:
        """Wake *follower* from now on."""
        self._followers.add(follower)
        self.join()

    def discard(self, follower: Follower) -> None:
        """Wake a follower no more; harmless when it is not woken."""
        if follower in self._followers:
            self._followers.discard(follower)
            if not self._followers:
                self._leave()
                self._closed(self._thread)

    def wake(self) -> None:
        """Let all followers look."""
        for follower in self._followers:
            follower.wake()

    def join(self) -> None:
        """Join the channel, and go on where the hub has left this behind."""
        if not self._followers:
            return
        if self._subscription is not None:
            for subscription in tuple(self.behind):
                self._hub.advance(subscription)
            return
        me = SubscriberInfo(ClientId(""), UserId(""), RawJson("{}"))
        self._subscription, joined = self._hub.join(
            self._thread.channel, self, me, self._thread.history, None, self._joined
        )
        if joined is not None:
            self._joined(joined)

    def _joined(self, outcome: Joined | StoreError) -> None:
        if isinstance(outcome, StoreError):
            # They read the log themselves, and meet the fault there.
            self._subscription = None
        elif self._subscription is not None:
            self._hub.activate(self._subscription)
        self.wake()

    def _leave(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._hub.leave(subscription)

    # A member of the hub.

    @property
    def space(self) -> int:
        """Bytes that it takes."""
        return _UNLIMITED

    def takes_more(self) -> bool:
        """Tell whether it takes another piece."""
        return True

    def give(self, size: int) -> None:
        """Count nothing: nothing is kept."""

    def put(self, text: str, *, window: float = 0.0) -> None:
        """Wake the followers, who read it themselves."""
        self.wake()

    def lost(self, channel: Channel) -> None:
        """Join again: the stream has a gap, which followers see themselves."""
        self._subscription = None
        self.join()
        self.wake()


class Follower:
    """A viewer's cursor in a thread's log. One task reads it.

    Args:
        thread: The thread.
        after: The position after which it begins; the epoch "" means any.
        feed: Wakes it.
        store: Holds the log.
        clock: Times waits.
        shared: Whether other servers write to the store.

    Attributes:
        position: The last event that it was handed, or where it began.
    """

    def __init__(
        self,
        thread: Thread,
        after: Position,
        feed: Feed,
        store: Store,
        clock: Clock,
        *,
        shared: bool,
    ) -> None:
        self.thread = thread
        self.position = after
        self._feed = feed
        self._store = store
        self._clock = clock
        self._shared = shared
        self._woken = asyncio.Event()
        feed.add(self)

    def wake(self) -> None:
        """Let it look whether there is more."""
        self._woken.set()

    def close(self) -> None:
        """End it; safe to call twice."""
        self._feed.discard(self)

    async def next(self, timeout: float | None = None) -> list[Publication]:
        """Wait for the events after `position`; they are at most 64, in order.

        What was erased is passed over. The call can be cancelled: nothing is lost.

        Args:
            timeout: Seconds after which the answer is empty; None waits on.

        Raises:
            Gone: The history does not have the next event any more.
            StoreError: The read failed; the fault is transient.
        """
        deadline = None if timeout is None else self._clock.now() + timeout
        while True:
            self._woken.clear()
            self._feed.join()
            before = self.position.offset
            found = await self._read()
            if found:
                return found
            if self.position.offset != before:
                continue  # all of it was erased
            until = deadline
            if self._shared:
                look = self._clock.now() + _SHARED_POLL
                until = look if until is None else min(look, until)
            if until is None:
                await self._woken.wait()
                continue
            timer = self._clock.call_at(until, self.wake)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()
            if deadline is not None and self._clock.now() >= deadline:
                return await self._read()

    async def _read(self) -> list[Publication]:
        channel, history = self.thread.channel, self.thread.history
        offset, epoch = self.position
        page = self._store.peek(channel, history, offset, PIECE)
        if page is None:
            page = await self._store.read(channel, history, offset, PIECE)
        found, top = page.publications, page.top
        if epoch not in ("", top.epoch) or offset > top.offset:
            raise Gone
        if not found:
            if offset < top.offset:
                raise Gone
            self.position = Position(offset, top.epoch)
            return []
        if found[0].offset != offset + 1:
            raise Gone
        self.position = Position(found[-1].offset, top.epoch)
        return [publication for publication in found if publication.data != "null"]

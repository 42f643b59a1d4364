"""Presence, joins and leaves over all nodes of a deployment, from rows of a table.

Each node writes a row for each of its subscribers that others may see: in batches, some
tenths of a second after the subscriber came. It names the channels whose rows it has
changed in its *feed*. Every node reads the feeds once a period (`ClusterSync`), and
those of the channels in which it has listeners, or lost connections that may come back
elsewhere. What differs from what it knew is told to its listeners as joins and leaves
(`Hub.set_remote`). So no join or leave is sent from node to node: each is derived, by
every node, from the rows.

Invariants, all on the event loop:

* A listener is told of each subscriber of another node once when it comes and once when
  it goes, in this order, whatever is late, repeated or lost on the way. One that came
  and went between two looks is told of neither way.
* The rows of a node that died are not returned from the moment at which it is marked:
  each node tells its own listeners then, once.
* A lost connection whose user joins the channel again on another node, while it is held
  (`grace_period`), leaves in the step in which that one joins, and at once for all.
* The table has, some time after the last change, the rows of `_rows` and no others of
  this node; the calls for one row are made one after the other.
* A channel is read by one call at a time, and again when its rows have changed since.

Interleavings that could break them, each a test in tests/connections/
test_cluster_presence.py: a subscriber that leaves while its row is written; a read that
begins before a change and ends after it; a node that is marked dead while another
cleans up its rows; one that was taken for dead and comes back under another name; a
client that reconnects to another node before, while and after its old node's rows are
cleaned up; a listener that comes while its channel is read; a feed that has moved on
further than it reaches back.

Bounds: `BATCH` rows are written in a flush, one each `FLUSH`; what waits is at most a
row for each subscriber, and one for each that has left and is still in the table.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

from service.core.clock import sleep
from service.core.cluster import (
    ANY_CHANNEL,
    FEED,
    Changes,
    Cluster,
    Node,
    PresenceKey,
    PresenceRow,
    visible,
)
from service.core.errors import StoreError
from service.core.model import Channel, SubscriberInfo
from service.core.ports import Clock, PresenceDone, Timer
from service.hub.hub import Hub
from service.hub.subscription import Subscription, Topic

__all__ = ["FLUSH", "PAUSE", "ClusterPresence"]

FLUSH = 0.25  # s
BATCH = 250  # rows
PAUSE = 2.0  # s after a flush that failed

CLOSING = 2.0  # s
WAIT = 0.02  # s for a flush that is under way, or has failed, when the process ends

READS = 8  # of channels, at once

NAMED = 2000  # characters of channel names in an entry of the feed, and in the feed


class ClusterPresence:
    """The presence of one node in its deployment (`hub.SharedPresence`).

    Args:
        hub: Has the subscribers of this node.
        cluster: The table.
        clock: Dates the rows, and times their writes.
        spawn: Runs a coroutine in the background.
        silent: Whether rows are written that no feed tells of: the gateway's.

    Attributes:
        hint: Tells the other nodes to look now; it may do nothing.
    """

    def __init__(
        self,
        hub: Hub,
        cluster: Cluster,
        clock: Clock,
        spawn: Callable[[Awaitable[None]], object],
        *,
        silent: bool = False,
    ) -> None:
        self.hint: Callable[[], object] = lambda: None
        self._silent = silent
        self._hub = hub
        self._cluster = cluster
        self._clock = clock
        self._spawn = spawn
        self._rows: dict[PresenceKey, tuple[PresenceRow, Subscription]] = {}
        self._dirty: dict[PresenceKey, None] = {}
        self._written: set[PresenceKey] = set()  # they may be in the table
        self._name = cluster.name
        self._feed: deque[Changes] = deque(maxlen=FEED)
        self._number = 0
        self._told = True
        self._timer: Timer | None = None
        self._flushing = False
        self._stopped = False
        self._seen: dict[str, int] = {}  # by node: the last entry of its feed
        self._dead: set[str] = set()
        self._watched: dict[Channel, Topic] = {}
        self._stale: dict[Channel, None] = {}  # to be read
        self._reading: dict[Channel, asyncio.Future[Sequence[PresenceRow]]] = {}

    async def close(self) -> None:
        """Write what waits, within `CLOSING`; the rest is deleted with the node."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._clock.now() + CLOSING
        while self._clock.now() < deadline and (self._flushing or self._dirty):
            if self._flushing:
                await sleep(self._clock, WAIT)
                continue
            try:
                await self._write()
            except StoreError:
                await sleep(self._clock, WAIT)

    # From the hub.

    def entered(self, subscription: Subscription) -> None:
        """Take note of a subscriber that others may see."""
        topic, subscriber = subscription.topic, subscription.subscriber
        row = PresenceRow(
            topic.channel,
            subscriber.client,
            subscriber.user,
            "",
            subscriber.info,
            self._now(),
            present=subscriber.present,
            announced=subscriber.sends_join_leave,
        )
        self._rows[row.key] = row, subscription
        self._change(row.key)

    def lost(self, subscription: Subscription) -> None:
        """Take note that a subscriber's connection was lost, and may come back."""
        key = _key_of(subscription)
        row, owner = self._rows.get(key, (None, None))
        if row is not None and owner is subscription:
            self._rows[key] = row._replace(lost=self._now()), subscription
            self._change(key)
            self.watch(subscription.topic)

    def left(self, subscription: Subscription) -> None:
        """Take note that a subscriber has left."""
        key = _key_of(subscription)
        row, owner = self._rows.get(key, (None, None))
        if row is None or owner is not subscription:
            return
        del self._rows[key]
        if key in self._written:
            self._change(key)
        else:
            self._dirty.pop(key, None)

    def watch(self, topic: Topic) -> None:
        """Keep a channel's subscribers of other nodes up to date from now on."""
        if self._watched.get(topic.channel) is not topic:
            self._watched[topic.channel] = topic
            self._stale[topic.channel] = None
            self._spawn(self._read_stale())

    def look(
        self, channel: Channel, looker: Subscription | None, done: PresenceDone
    ) -> list[SubscriberInfo] | None:
        """Return who is present, or call *done* with it later."""
        topic = self._watched.get(channel)
        known = topic is not None and topic.shared and channel not in self._stale
        if known and not self._silent:
            return self._hub.present(channel, looker)

        async def look() -> None:
            try:
                rows = await self._read(channel)
            except StoreError as error:
                done(error)
                return
            here = self._hub.present(channel, looker)
            known = {one.client for one in here}
            done(
                here
                + [
                    SubscriberInfo(row.client, row.user, row.info, present=True)
                    for row in rows
                    if row.present and row.client not in known
                ]
            )

        self._spawn(look())
        return None

    # Writing.

    def _change(self, key: PresenceKey) -> None:
        self._dirty[key] = None
        self._wind(FLUSH)

    def _wind(self, seconds: float) -> None:
        if self._timer is None and not self._flushing and not self._stopped:
            self._timer = self._clock.call_at(self._clock.now() + seconds, self._due)

    def _due(self) -> None:
        self._timer = None
        self._flushing = True
        self._spawn(self._flush())

    async def _flush(self) -> None:
        pause = FLUSH
        try:
            await self._write()
        except StoreError:
            pause = PAUSE
        finally:
            self._flushing = False
            if self._dirty or not self._told:
                self._wind(pause)

    async def _write(self) -> None:
        keys = [key for key, _ in zip(self._dirty, range(BATCH), strict=False)]
        for key in keys:
            del self._dirty[key]
        name = self._name
        entering = [
            self._rows[key][0]._replace(node=name) for key in keys if key in self._rows
        ]
        leaving = [key for key in keys if key not in self._rows]
        self._written.update(row.key for row in entering)
        try:
            if entering:
                await self._cluster.enter(entering)
            if leaving:
                await self._cluster.leave(leaving)
        except StoreError:
            self._dirty = {**dict.fromkeys(keys), **self._dirty}
            raise
        for key in leaving:
            if key not in self._rows:
                self._written.discard(key)
        if keys:
            self._extend_feed({key.channel for key in keys})
        if not self._told:
            await self._cluster.tell(tuple(self._feed))
            self._told = True
            self.hint()

    def _extend_feed(self, channels: Iterable[Channel]) -> None:
        names = tuple(channels)
        if sum(map(len, names)) > NAMED:
            names = (ANY_CHANNEL,)
        self._number += 1
        self._feed.append(Changes(self._number, names))
        self._told = False
        size = 0
        for index in reversed(range(len(self._feed))):
            size += sum(map(len, self._feed[index].channels))
            if size > NAMED:
                for _ in range(index + 1):
                    self._feed.popleft()
                break
        if not self._feed:
            self._feed.append(Changes(self._number, names))

    # Reading.

    async def look_at_nodes(self) -> None:
        """Read the feeds, and the channels that have changed.

        Raises:
            StoreError: The nodes cannot be read.
        """
        self._check_own()
        for each in await self._cluster.nodes():
            self._look_at(each)
        await self._read_stale()

    def _check_own(self) -> None:
        """Write the rows anew that have changed unheard, or all under a new name."""
        if self._name != self._cluster.name:
            self._name = self._cluster.name
            for key in self._rows:
                self._change(key)
        for key, (row, subscription) in self._rows.items():
            if row.info != subscription.subscriber.info:
                info = subscription.subscriber.info
                self._rows[key] = row._replace(info=info), subscription
                self._change(key)

    def _look_at(self, node: Node) -> None:
        if node.dead:
            if node.name not in self._dead:
                self._dead.add(node.name)
                self._mark_stale(
                    channel
                    for channel, topic in self._watched.items()
                    if any(one.node == node.name for one in topic.remote.values())
                )
            return
        seen = self._seen.get(node.name, 0)
        new = [each for each in node.feed if each.number > seen]
        if not new:
            return
        self._seen[node.name] = new[-1].number
        names = {name for each in new for name in each.channels}
        if new[0].number > seen + 1 or ANY_CHANNEL in names:
            names = set(self._watched)
        self._mark_stale(names)

    def _mark_stale(self, channels: Iterable[Channel]) -> None:
        for channel in channels:
            if channel in self._watched:
                self._stale[channel] = None

    async def _read_stale(self) -> None:
        async def work() -> None:
            while self._stale:
                channel = next(iter(self._stale))
                del self._stale[channel]
                try:
                    await self._read(channel, fresh=True)
                except StoreError:
                    failed.append(channel)

        failed: list[Channel] = []
        await asyncio.gather(*(work() for _ in range(min(READS, len(self._stale)))))
        self._mark_stale(failed)

    async def _read(
        self, channel: Channel, *, fresh: bool = False
    ) -> Sequence[PresenceRow]:
        """Return the rows of other nodes that are visible, and tell who listens.

        Args:
            channel: The channel.
            fresh: Whether a read that is under way began too early.

        Raises:
            StoreError: They cannot be read.
        """
        while (under_way := self._reading.get(channel)) is not None:
            if not fresh:
                return await asyncio.shield(under_way)
            with suppress(StoreError):
                await asyncio.shield(under_way)
        reading = asyncio.get_running_loop().create_future()
        self._reading[channel] = reading
        try:
            rows = await self._cluster.present(channel)
        except BaseException as error:
            del self._reading[channel]
            if isinstance(error, StoreError):
                reading.set_exception(error)
                reading.exception()  # perhaps nobody else waits for it
            else:
                reading.cancel()
            raise
        del self._reading[channel]
        remote = self._apply(channel, rows)
        reading.set_result(remote)
        return remote

    def _apply(
        self, channel: Channel, rows: Sequence[PresenceRow]
    ) -> Sequence[PresenceRow]:
        names = self._cluster.names
        others = [row for row in rows if row.node not in names]
        own = {
            key: found for key, found in self._rows.items() if key.channel == channel
        }
        shown = visible([*others, *(row for row, _ in own.values())])
        remote = [row for row in others if row.key in shown]
        topic = self._watched.get(channel)
        if topic is None:
            return remote
        for key, (_, subscription) in own.items():
            if key not in shown:
                self._hub.take_over(subscription)
        if topic.listeners or topic.in_grace:
            self._hub.set_remote(topic, remote)
        else:
            del self._watched[channel]
            topic.shared = False
            topic.remote.clear()
        return remote

    def _now(self) -> int:
        return round(self._clock.wall() * 1000)


def _key_of(subscription: Subscription) -> PresenceKey:
    return PresenceKey(subscription.topic.channel, subscription.subscriber.client)

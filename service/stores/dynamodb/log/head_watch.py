"""Watches the HEADs of channels that have subscribers here, for what others publish.

A channel is *covered* while a broker carries its hints (`core.broker`). Its HEAD is
then read once, after the broker has confirmed that, and whenever there is a doubt. Any
other channel is polled: `QUICK` after it was followed or has changed, then after twice
the pause each time, up to `SLOW`. What this process publishes itself, or was told of,
is not a change. Nothing is polled while it is known that nobody else commits (`rest`).

Bounds: `BATCH` HEADs in a read, `AT_ONCE` reads under way: under load polls are late
rather than many. A read that fails is repeated after `SLOW`.

Cost: a poll takes 0.5 read units for each channel (HEAD is below 4 KB, and the read is
eventually consistent: a poll that sees too little is followed by another). A look takes
1: it must see everything that was committed before it.

Invariants, on the event loop:

* A channel that is followed and not covered has a poll ahead, or under way, unless
  polls rest.
* A look that is asked for during a look of the same channel is another read: the one
  under way may have been answered before.
* `moved` is called for each top that is seen to be new, also where its channel was
  unfollowed and followed again meanwhile: the hub then has another topic, and compares.

The interleavings, each a test in tests/stores/dynamodb/log/test_head_watch.py: a look
during a look; confirmed, lost, and confirmed again during one; unfollowed during one;
an older top after a newer one (an eventually consistent read may see less than the one
before it).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator
from itertools import count, islice

import structlog

from service.core.errors import StoreError, describe
from service.core.model import Channel, Position
from service.core.ports import Clock, History, Timer
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.log.items import head_key
from service.stores.dynamodb.log.reader import Reader

__all__ = ["AT_ONCE", "BATCH", "QUICK", "SLOW", "HeadWatch"]

QUICK = 0.1  # s before the first poll, and after a change
SLOW = 2.0  # s between polls of an idle channel
BATCH = 100  # HEADs in one read: what BatchGetItem takes
AT_ONCE = 2  # reads under way; publications and other reads have the other threads

_log = structlog.get_logger(__name__)


class _Watched:
    """A channel that is followed.

    Attributes:
        history: Its retention.
        covered: A broker carries its hints.
        due: When it is polled next, by the clock; None if it is not.
        pause: Seconds before the poll after that.
        top: The newest position that is known here; None before any is.
    """

    __slots__ = ("covered", "due", "history", "pause", "top")

    def __init__(self, history: History) -> None:
        self.history = history
        self.covered = False
        self.due: float | None = None
        self.pause = QUICK
        self.top: Position | None = None


class HeadWatch:
    """The HEADs that one store watches.

    Args:
        client: Calls the table.
        reader: Knows the states of channels.
        clock: Times the polls.
        moved: Called with each top that is new.
    """

    def __init__(
        self,
        client: Client,
        reader: Reader,
        clock: Clock,
        moved: Callable[[Channel, Position], None],
    ) -> None:
        self._untold: set[str] = set()  # why covered channels are polled, too
        self._rests = False
        self._client = client
        self._reader = reader
        self._clock = clock
        self._moved = moved
        self._watched: dict[Channel, _Watched] = {}
        self._polls: list[tuple[float, int, Channel]] = []  # a heap; may be outdated
        self._serial = count()
        self._looks: dict[Channel, None] = {}  # asked for, the oldest first
        self._resting = float("-inf")  # no look before then
        self._timer: Timer | None = None
        self._timer_at = float("inf")
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def history(self, channel: Channel) -> History | None:
        """Return the retention of a channel that is followed, else None."""
        watched = self._watched.get(channel)
        return None if watched is None else watched.history

    def follow(self, channel: Channel, history: History) -> None:
        """Begin to watch a channel."""
        watched = self._watched[channel] = _Watched(history)
        self._schedule(channel, watched)

    def unfollow(self, channel: Channel) -> None:
        """End it."""
        self._watched.pop(channel, None)
        self._looks.pop(channel, None)

    def look(self, channel: Channel) -> None:
        """Read a channel's HEAD soon, with all that was committed before the read."""
        watched = self._watched.get(channel)
        if watched is not None and watched.history.size:
            self._looks[channel] = None
            self._wind()

    def cover(self, channel: Channel) -> None:
        """Poll a channel no more: hints of it arrive. It is looked at once."""
        watched = self._watched.get(channel)
        if watched is not None:
            watched.covered = True
            if not self._untold:
                watched.due = None
            self.look(channel)

    def uncover(self) -> None:
        """Poll all channels: no hints arrive."""
        for watched in self._watched.values():
            watched.covered = False
        self._poll_all()

    def poll_covered(self, why: str, holds: bool) -> None:
        """Poll covered channels too while any reason holds: somebody tells nobody."""
        if holds == (why in self._untold):
            return
        if holds:
            self._untold.add(why)
        else:
            self._untold.discard(why)
        _log.info("a reason to poll all channels", why=why, holds=holds)
        self._poll_all()

    def rest(self, rests: bool) -> None:
        """Poll nothing from now on, or again: nobody else commits, or somebody may."""
        if rests != self._rests:
            self._rests = rests
            self._poll_all()

    def _poll_all(self) -> None:
        """Poll all channels that may be polled, soon."""
        for channel, watched in self._watched.items():
            watched.pause = QUICK
            self._schedule(channel, watched)

    def known(self, channel: Channel, top: Position) -> None:
        """Take note of a top that this process has made, or was told of."""
        watched = self._watched.get(channel)
        if watched is not None and _is_news(watched.top, top):
            watched.top = top

    async def close(self) -> None:
        """Read no more, and wait for what is under way."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._running:
            await asyncio.wait(self._running)

    # When to read

    def _schedule(self, channel: Channel, watched: _Watched) -> None:
        """Set when a channel is polled next, if it is."""
        watched.due = None
        covered = watched.covered and not self._untold
        if self._rests or covered or not watched.history.size:
            return
        watched.due = self._clock.now() + watched.pause
        heapq.heappush(self._polls, (watched.due, next(self._serial), channel))
        self._wind()

    def _wind(self) -> None:
        """Set the timer for what comes next."""
        if self._closed or len(self._running) >= AT_ONCE:
            return  # the end of a read winds it
        due = self._polls[0][0] if self._polls else float("inf")
        if self._looks:
            due = min(due, max(self._clock.now(), self._resting))
        if due < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self._clock.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        while len(self._running) < AT_ONCE:
            now = self._clock.now()
            if self._looks and self._resting <= now:
                channels = list(islice(self._looks, BATCH))
                for channel in channels:
                    del self._looks[channel]
                self._begin(channels, consistent=True)
            elif channels := list(islice(self._due(now), BATCH)):
                self._begin(channels, consistent=False)
            else:
                break
        self._wind()

    def _due(self, now: float) -> Iterator[Channel]:
        """Take the channels whose poll is due."""
        while self._polls and self._polls[0][0] <= now:
            due, _, channel = heapq.heappop(self._polls)
            watched = self._watched.get(channel)
            if watched is not None and watched.due == due:
                watched.due = None
                yield channel

    # Reading

    def _begin(self, channels: list[Channel], *, consistent: bool) -> None:
        task = asyncio.get_running_loop().create_task(
            self._read(channels, consistent=consistent)
        )
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a look at channels failed", **describe(error))
        self._wind()

    async def _read(self, channels: list[Channel], *, consistent: bool) -> None:
        found: dict[Channel, Position] | None = None
        try:
            found = await self._tops(channels, consistent=consistent)
        except StoreError:
            pass  # the client has counted and logged it
        finally:
            for channel in channels:
                if found is None or channel not in found:
                    self._failed(channel, consistent=consistent)
        for channel, top in (found or {}).items():
            self._seen(channel, top, poll=not consistent)

    async def _tops(
        self, channels: list[Channel], *, consistent: bool
    ) -> dict[Channel, Position]:
        """Return the tops of those that were read."""
        table = self._client.table
        keys = {head_key(channel)["pk"]["S"]: channel for channel in channels}
        answer = await self._client.call(
            "batch_get_item",
            {
                "RequestItems": {
                    table: {
                        "Keys": [head_key(channel) for channel in channels],
                        "ConsistentRead": consistent,
                    }
                }
            },
        )
        items = {item["pk"]["S"]: item for item in answer["Responses"].get(table, [])}
        left = answer.get("UnprocessedKeys", {}).get(table, {}).get("Keys", [])
        for key in left:
            del keys[key["pk"]["S"]]
        now = int(self._clock.wall() * 1000)
        return {
            channel: self._reader.decode(items.get(pk), channel, now).position
            for pk, channel in keys.items()
        }

    def _failed(self, channel: Channel, *, consistent: bool) -> None:
        watched = self._watched.get(channel)
        if watched is None:
            return
        if consistent:
            self._resting = self._clock.now() + SLOW
            self._looks[channel] = None
        else:
            watched.pause = SLOW
            self._schedule(channel, watched)

    def _seen(self, channel: Channel, top: Position, *, poll: bool) -> None:
        watched = self._watched.get(channel)
        if watched is None:
            return
        news = _is_news(watched.top, top)
        if poll and watched.due is None:
            watched.pause = QUICK if news else min(2 * watched.pause, SLOW)
            self._schedule(channel, watched)
        if news:
            watched.top = top
            self._moved(channel, top)


def _is_news(known: Position | None, top: Position) -> bool:
    return known is None or known.epoch != top.epoch or known.offset < top.offset

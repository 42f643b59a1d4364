"""The newest publications of active channels, in memory.

A reconnect storm asks for what was just published; this is what answers it. Nothing
here knows where publications are stored: commits and reads feed it, any store can
use it. Event loop only; no I/O.

Invariants of a `Tail`:

* Its publications are contiguous and end at ``top``; it holds every publication that
  is stored above ``floor``. So whatever lies above ``floor`` can be answered, and
  nothing else.
* Times never fall with rising offsets (the store sees to that). If one cached
  publication has expired, everything below it has too.

The interleavings that could break this, and what stops them:

* A read's result arrives after a commit that it did not see was told of. Were it
  taken for the tail, later reads would miss that commit. A `InFlightRead` therefore
  remembers that its channel was written to while it was under way: its result may
  then only be put *below* a tail that is already here, never replace an absent one.
* A read's result arrives after a removal it did not see: it is not kept at all.
* A read sees a removal before the loop is told of it, and finds nothing where the tail
  has something: it is not put below, or the two together would be a state that the
  channel was never in.
* A read sees a commit before the loop is told of it: when the commit is told of, its
  offsets are at or below ``top`` and are skipped.
"""

from __future__ import annotations

from asyncio import Future
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from sys import getsizeof
from typing import NamedTuple

from service.core.model import Channel, HistoryPage, Position, Publication
from service.core.ports import Committed

__all__ = [
    "FOREVER",
    "ReadRequest",
    "InFlightRead",
    "Tail",
    "TailCache",
    "milliseconds",
]

# What a publication costs beside its strings: the object (96 bytes), its place in a
# list, and the wire form that the protocol hangs on it.
OVERHEAD = 200  # bytes

# Publications dropped from the front of a list at a time: each drop moves the rest.
SLACK = 64  # count

FOREVER = 10**15  # ms, some 30,000 years; longer times overflow SQLite's integers


class ReadRequest(NamedTuple):
    """The arguments of one read; equal ones can share an answer."""

    size: int
    ttl: float
    since: int | None
    limit: int
    reverse: bool

    def span(self, top: int) -> tuple[int, int]:
        """Return the offsets, above the first and up to the second, it may ask for."""
        low, high = max(top - self.size, 0), top
        if self.limit == 0:
            return top, top
        if self.reverse:
            if self.since is not None:
                high = min(high, self.since - 1)
            if self.limit > 0:
                low = max(low, high - self.limit)
        elif self.since is not None:
            low = max(low, self.since)
        return low, high


def milliseconds(seconds: float) -> int:
    """Return *seconds* in whole milliseconds, at most `FOREVER`."""
    return int(min(seconds * 1000, FOREVER))


class Tail:
    """The end of one channel's stream.

    Attributes:
        epoch: Of the stream.
        top: The newest offset, whether or not it is still kept.
        floor: Everything stored above this offset is in `publications`.
        publications: In offset order.
        bytes: What they cost.
        generation: Of the cache, when a channel without metadata was looked up.
    """

    __slots__ = ("bytes", "epoch", "floor", "generation", "publications", "top")

    def __init__(
        self, epoch: str, top: int, floor: int, publications: list[Publication]
    ) -> None:
        self.epoch = epoch
        self.top = top
        self.floor = floor
        self.publications = publications
        self.bytes = sum(map(_cost, publications))
        self.generation = 0

    def answer(self, demand: ReadRequest, now: int) -> HistoryPage | None:
        """Answer a read at *now* (Unix ms), or return None if it asks for more."""
        size, ttl, since, limit, reverse = demand
        top = self.top
        position = Position(top, self.epoch)
        if limit == 0:
            return HistoryPage([], position)
        publications = self.publications
        start = top - len(publications) + 1  # the first cached offset
        low, high = max(top - size, 0), top  # the answer is above low, up to high
        expired = self._expired(now - milliseconds(ttl))
        if expired:
            low = max(low, start + expired - 1)
        if reverse:
            if since is not None:
                high = min(high, since - 1)
            if limit > 0:
                low = max(low, high - limit)
        elif since is not None:
            low = max(low, since)
        if low < self.floor and low < high:
            return None
        low = max(low, start - 1)  # what is stored need not reach down to low
        if limit > 0 and not reverse:
            high = min(high, low + limit)
        if high <= low:
            return HistoryPage([], position)
        page = publications[low + 1 - start : high + 1 - start]
        if reverse:
            page.reverse()
        return HistoryPage(page, position)

    def _expired(self, cutoff: int) -> int:
        """Return how many of the oldest cached have a time at or before *cutoff*."""
        publications = self.publications
        if not publications or publications[0].time > cutoff:
            return 0
        low, high = 0, len(publications)
        while low < high:
            middle = (low + high) // 2
            if publications[middle].time <= cutoff:
                low = middle + 1
            else:
                high = middle
        return low

    def drop(self, count: int) -> int:
        """Forget the *count* oldest; return the bytes this frees."""
        dropped = self.publications[:count]
        if not dropped:
            return 0
        del self.publications[:count]
        self.floor = dropped[-1].offset
        freed = sum(map(_cost, dropped))
        self.bytes -= freed
        return freed


class InFlightRead:
    """A read under way, shared by all who ask for the same channel meanwhile.

    Attributes:
        demands: What is asked for; closed once `launched`.
        launched: It was handed to the reader. Who comes after that may have been
            told of a commit that this read does not see, so must not use its result.
        written: A commit to the channel was told of since the launch.
        cut: Publications or metadata were deleted since the launch.
        landed: Resolves to the answers, by demand, or to why there are none.
    """

    __slots__ = ("cut", "demands", "landed", "launched", "written")

    def __init__(self, landed: Future[dict[ReadRequest, HistoryPage] | str]) -> None:
        self.demands: set[ReadRequest] = set()
        self.launched = False
        self.written = False
        self.cut = False
        self.landed = landed


class TailCache:
    """The tails of the most recently used channels, bounded in bytes.

    Args:
        limit: Bytes; above it the channel unused for longest is forgotten, and of
            the only one left the oldest publications.

    Attributes:
        flights: The reads under way, by channel; the store puts them here.
    """

    def __init__(self, limit: int) -> None:
        self.flights: dict[Channel, InFlightRead] = {}
        self._limit = limit
        self._tails: OrderedDict[Channel, Tail] = OrderedDict()
        self._bytes = 0
        self._generation = 0

    @property
    def bytes(self) -> int:
        """What is cached costs so much."""
        return self._bytes

    def position(self, channel: Channel) -> Position | None:
        """Return where the tail of a channel ends, None if there is none."""
        tail = self._tails.get(channel)
        return None if tail is None else Position(tail.top, tail.epoch)

    def answer(
        self, channel: Channel, demand: ReadRequest, now: int
    ) -> HistoryPage | None:
        """Answer a read from memory, or return None if that is not possible."""
        tail = self._tails.get(channel)
        if tail is None:
            return None
        if not tail.top and tail.generation != self._generation:
            return None
        self._tails.move_to_end(channel)
        return tail.answer(demand, now)

    def extend(
        self, committed: Sequence[Committed], sizes: Mapping[Channel, int]
    ) -> None:
        """Take note of a commit, in its order.

        Args:
            committed: What was committed; that without offsets is ignored.
            sizes: The present history size of each channel in it.
        """
        tails = self._tails
        added = 0
        for channel, publication, epoch in committed:
            offset = publication.offset
            if not offset:
                continue
            tail = tails.get(channel)
            if tail is None:
                tail = self._put(channel, Tail(epoch, offset - 1, offset - 1, []))
            elif offset <= tail.top and tail.epoch == epoch:
                continue  # a read saw it first
            elif offset != tail.top + 1 or tail.epoch != epoch:
                self.forget(channel)
                tail = self._put(channel, Tail(epoch, offset - 1, offset - 1, []))
            tail.publications.append(publication)
            tail.top = offset
            cost = OVERHEAD + 2 * getsizeof(publication.data)
            if publication.info is not None or publication.tags is not None:
                cost = _cost(publication)
            tail.bytes += cost
            added += cost
        self._bytes += added
        for channel, size in sizes.items():
            tail = tails[channel]
            tails.move_to_end(channel)
            beyond = len(tail.publications) - size
            if beyond > SLACK:
                self._bytes -= tail.drop(beyond)
            flight = self.flights.get(channel)
            if flight is not None:
                flight.written = True
        if self._bytes > self._limit:
            self._evict()

    def fill(self, channel: Channel, found: Tail, flight: InFlightRead) -> None:
        """Take note of what a read found."""
        if flight.cut:
            return
        tail = self._tails.get(channel)
        if tail is None or not tail.top:
            if not flight.written:
                self.forget(channel)
                found.generation = self._generation
                self._put(channel, found)
                self._bytes += found.bytes
        elif tail.epoch == found.epoch and found.floor < tail.floor:
            first = tail.top - len(tail.publications) + 1
            if found.top < first - 1:
                return  # commits lie between: there would be a gap
            below = [p for p in found.publications if p.offset < first]
            if tail.publications and not below:
                oldest = found.publications[0].offset if found.publications else 0
                if oldest != first:
                    return  # it saw a removal that we were not told of yet
            tail.publications[:0] = below
            tail.floor = found.floor
            cost = sum(map(_cost, below))
            tail.bytes += cost
            self._bytes += cost
        self._evict()

    def clear(self, channel: Channel, top: int, epoch: str) -> None:
        """Take note that a channel's publications were removed up to *top*."""
        self._cut(channel)
        tail = self._tails.get(channel)
        if tail is None or tail.epoch != epoch:
            return
        gone = len(tail.publications) - max(tail.top - top, 0)
        if gone > 0:
            self._bytes -= tail.drop(gone)
        if tail.top == top:
            tail.floor = 0

    def blank(self, channel: Channel) -> None:
        """Take note that what is stored of a channel is not what it was."""
        self._cut(channel)
        self.forget(channel)

    def expire(self, channels: Iterable[Channel]) -> None:
        """Take note that the metadata of *channels* was deleted.

        With it the epochs of channels that were never published to may change, so
        every tail of such a channel is out of date.
        """
        self._generation += 1
        for flight in self.flights.values():
            flight.cut = True
        for channel in channels:
            self.forget(channel)

    def forget(self, channel: Channel) -> None:
        """Drop one channel."""
        tail = self._tails.pop(channel, None)
        if tail is not None:
            self._bytes -= tail.bytes + OVERHEAD

    def _cut(self, channel: Channel) -> None:
        flight = self.flights.get(channel)
        if flight is not None:
            flight.cut = True

    def _put(self, channel: Channel, tail: Tail) -> Tail:
        self._tails[channel] = tail
        self._bytes += OVERHEAD  # a channel without publications costs too
        return tail

    def _evict(self) -> None:
        while self._bytes > self._limit:
            channel, tail = next(iter(self._tails.items()))
            if len(self._tails) == 1 and tail.publications:
                self._bytes -= tail.drop((len(tail.publications) + 1) // 2)
            else:
                self.forget(channel)


def _cost(publication: Publication) -> int:
    """Return what a publication costs in memory, its wire form included."""
    strings = getsizeof(publication.data)
    if publication.info is not None:
        strings += getsizeof(publication.info)
    if publication.tags is not None:
        strings += getsizeof(publication.tags)
    return OVERHEAD + 2 * strings

"""In-memory cache of each channel's newest publications, and single-flight reads.

A reconnect storm asks for what was just published. The cache answers it: commits and
reads feed a `Tail` for each recently used channel. What it cannot answer is read from
the database, with at most one read of a channel under way (`SingleFlightReads`). Both
stores use this module; it knows nothing of where publications are stored. Event loop
only; no I/O.

Invariants of a `Tail`:

* Its publications are contiguous and end at ``top``; it holds every publication that
  is stored above ``floor``. So it can answer for all offsets above ``floor``, and for
  no others.
* Times never fall with rising offsets (the store sees to that). If one cached
  publication has expired, everything below it has too.

The interleavings that could break this, and what stops them:

* A read's result arrives after the cache was told of a commit that the read did not
  see. If the result became the tail, later reads would miss that commit. An
  `InFlightRead` therefore remembers that its channel was written to meanwhile: its
  result may then only be put *below* a tail that is already here, never replace an
  absent one.
* A read's result arrives after a removal that the read did not see: it is not cached.
* A read sees a removal before the cache is told of it, and finds nothing where the tail
  has something: it is not put below, or the two together would be a state that the
  channel never had.
* A read sees a commit before the cache is told of it: when the cache is told, the
  offsets of that commit are at or below ``top`` and are skipped.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from sys import getsizeof
from typing import Any, NamedTuple

import structlog

from service.core.errors import StoreError, StoreUnavailable, describe
from service.core.model import Channel, HistoryPage, Position, Publication
from service.core.ports import Committed

__all__ = [
    "FOREVER",
    "TAIL_BYTES",
    "InFlightRead",
    "ReadRequest",
    "SingleFlightReads",
    "Tail",
    "TailCache",
    "far_requests",
    "milliseconds",
    "tail_floor",
]

# Memory that a publication takes beside its strings: the object (96 bytes), its place
# in a list, and the wire form that the protocol attaches to it. Not counted is the wire
# form as a delta, which is shorter: it is there only where deltas are delivered.
OVERHEAD = 200  # bytes

# Publications dropped from the front of a list at a time: each drop moves the rest.
SLACK = 64  # count

# Reading up to this many publications more than a page needs, up to the top, is
# cheaper than reading the next page of the same client again.
WINDOW = 512  # count
TAIL_BYTES = 4 * 1024 * 1024  # of payloads in a tail that is read

FOREVER = 10**15  # ms, some 30,000 years; longer times overflow SQLite's integers

_log = structlog.get_logger(__name__)


class ReadRequest(NamedTuple):
    """The arguments of one read; equal ones can share an answer."""

    size: int
    ttl: float
    since: int | None
    limit: int
    reverse: bool

    def span(self, top: int, bottom: int = 0) -> tuple[int, int]:
        """Return the range of offsets asked for: above the first, up to the second.

        Args:
            top: Of the stream.
            bottom: Nothing is stored at this offset or below.
        """
        low, high = max(top - self.size, bottom), top
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


def tail_floor(requests: Iterable[ReadRequest], top: int, bottom: int) -> int:
    """Return the offset above which to read a tail, for all *requests* near the top.

    Args:
        requests: All that are served by one read.
        top: Of the stream.
        bottom: Nothing is stored at this offset or below.
    """
    floor = top
    for request in requests:
        low, high = request.span(top, bottom)
        near = request.limit < 0 or top - low <= max(WINDOW, request.limit)
        if low < high and near:
            floor = min(floor, low)
    return floor


def far_requests(
    requests: Iterable[ReadRequest], top: int, floor: int
) -> list[ReadRequest]:
    """Return the requests that a tail from *floor* to *top* cannot answer.

    Each needs a page of its own: it lies far below the top, or the bound on bytes cut
    the tail off above it.
    """
    far = []
    for request in requests:
        low, high = request.span(top)
        if low < min(floor, high):
            far.append(request)
    return far


def milliseconds(seconds: float) -> int:
    """Return *seconds* in whole milliseconds, at most `FOREVER`."""
    return int(min(seconds * 1000, FOREVER))


class Tail:
    """The end of one channel's stream.

    Attributes:
        epoch: Of the stream.
        top: The newest offset, whether or not its publication is still kept.
        floor: Everything stored above this offset is in `publications`.
        publications: In offset order.
        bytes: The memory they take.
        generation: The cache's, when the tail of a channel without metadata was cached.
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

    def answer(self, request: ReadRequest, now: int) -> HistoryPage | None:
        """Answer a read at *now* (Unix ms), or return None if it asks for more."""
        size, ttl, since, limit, reverse = request
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

    def answer_rest(
        self,
        requests: Iterable[ReadRequest],
        pages: Mapping[ReadRequest, HistoryPage],
        now: int,
    ) -> dict[ReadRequest, HistoryPage]:
        """Return *pages*, and the answers at *now* (Unix ms) to all other *requests*.

        Raises:
            AssertionError: One of them asks for more than was read.
        """
        answers = dict(pages)
        for request in requests:
            if request not in answers:
                page = self.answer(request, now)
                if page is None:
                    raise AssertionError("a read returns all that it was asked for")
                answers[request] = page
        return answers

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
        requests: What it has to answer; complete once `started`.
        started: It may have looked at the database. A caller that comes later may have
            been told of a commit that this read does not see, so must not use its
            result.
        written: A commit to the channel was announced since the start.
        stale: Publications or metadata were deleted since the start: the result must
            not be cached.
        done: Resolves to the answers, or to the reason of a failure.
    """

    __slots__ = ("done", "requests", "stale", "started", "written")

    def __init__(self, done: Future[dict[ReadRequest, HistoryPage] | str]) -> None:
        self.requests: set[ReadRequest] = set()
        self.started = False
        self.written = False
        self.stale = False
        self.done = done


class TailCache:
    """The tails of the most recently used channels, bounded in bytes.

    Args:
        limit: Bytes. Above it the channel unused for longest is forgotten; if only one
            is left, its oldest publications are.

    Attributes:
        in_flight: The reads under way, by channel.
    """

    def __init__(self, limit: int) -> None:
        self.in_flight: dict[Channel, InFlightRead] = {}
        self._limit = limit
        self._tails: OrderedDict[Channel, Tail] = OrderedDict()
        self._bytes = 0
        self._generation = 0

    @property
    def bytes(self) -> int:
        """The memory that the cache takes, by its own count."""
        return self._bytes

    def position(self, channel: Channel) -> Position | None:
        """Return where the tail of a channel ends, or None if none is cached."""
        tail = self._tails.get(channel)
        return None if tail is None else Position(tail.top, tail.epoch)

    def answer(
        self, channel: Channel, request: ReadRequest, now: int
    ) -> HistoryPage | None:
        """Answer a read at *now* (Unix ms), or return None if that is not possible."""
        tail = self._tails.get(channel)
        if tail is None:
            return None
        if not tail.top and tail.generation != self._generation:
            return None
        self._tails.move_to_end(channel)
        return tail.answer(request, now)

    def extend(
        self, committed: Sequence[Committed], sizes: Mapping[Channel, int]
    ) -> None:
        """Add what was committed.

        Args:
            committed: In the order of commits; those without offsets are ignored.
            sizes: The present history size of each channel in it.
        """
        tails = self._tails
        added = 0
        for channel, publication, epoch, *_ in committed:
            offset = publication.offset
            if not offset:
                continue
            tail = tails.get(channel)
            if tail is None:
                tail = self._put(channel, Tail(epoch, offset - 1, offset - 1, []))
            elif offset <= tail.top and tail.epoch == epoch:
                continue  # a read found it before this call
            elif offset != tail.top + 1 or tail.epoch != epoch:
                self.forget(channel)
                tail = self._put(channel, Tail(epoch, offset - 1, offset - 1, []))
            tail.publications.append(publication)
            tail.top = offset
            strings = getsizeof(publication.data)  # as `_cost`
            if publication.info is not None:
                strings += getsizeof(publication.info)
            if publication.tags is not None:
                strings += getsizeof(publication.tags)
            cost = OVERHEAD + 2 * strings
            tail.bytes += cost
            added += cost
        self._bytes += added
        for channel, size in sizes.items():
            tail = tails[channel]
            tails.move_to_end(channel)
            beyond = len(tail.publications) - size
            if beyond > SLACK:
                self._bytes -= tail.drop(beyond)
            read = self.in_flight.get(channel)
            if read is not None:
                read.written = True
        if self._bytes > self._limit:
            self._evict()

    def fill(self, channel: Channel, found: Tail, read: InFlightRead) -> None:
        """Add what *read* found, unless it is out of date."""
        if read.stale:
            return
        tail = self._tails.get(channel)
        if tail is None or not tail.top:
            if not read.written:
                self.forget(channel)
                found.generation = self._generation
                self._put(channel, found)
                self._bytes += found.bytes
        elif tail.epoch == found.epoch and found.floor < tail.floor:
            first = tail.top - len(tail.publications) + 1
            if found.top < first - 1:
                return  # there would be a gap: commits lie between
            below = [p for p in found.publications if p.offset < first]
            if tail.publications and not below:
                oldest = found.publications[0].offset if found.publications else 0
                if oldest != first:
                    return  # it saw a removal that the cache was not told of yet
            tail.publications[:0] = below
            tail.floor = found.floor
            cost = sum(map(_cost, below))
            tail.bytes += cost
            self._bytes += cost
        self._evict()

    def clear(self, channel: Channel, top: int, epoch: str) -> None:
        """Drop what was removed of a channel: its publications up to *top*."""
        self._outdate_read(channel)
        tail = self._tails.get(channel)
        if tail is None or tail.epoch != epoch:
            return
        gone = len(tail.publications) - max(tail.top - top, 0)
        if gone > 0:
            self._bytes -= tail.drop(gone)
        if tail.top == top:
            tail.floor = 0

    def blank(self, channel: Channel) -> None:
        """Drop a channel whose stored publications were changed."""
        self._outdate_read(channel)
        self.forget(channel)

    def expire(self, channels: Iterable[Channel]) -> None:
        """Drop channels whose metadata was deleted.

        With it the epochs of channels that were never published to may change, so
        every tail of such a channel is out of date.
        """
        self._generation += 1
        for read in self.in_flight.values():
            read.stale = True
        for channel in channels:
            self.forget(channel)

    def forget(self, channel: Channel) -> None:
        """Drop one channel."""
        tail = self._tails.pop(channel, None)
        if tail is not None:
            self._bytes -= tail.bytes + OVERHEAD

    def forget_all(self) -> None:
        """Drop everything: nobody knows what is true."""
        self._generation += 1
        for read in self.in_flight.values():
            read.stale = True
        for channel in list(self._tails):
            self.forget(channel)

    def _outdate_read(self, channel: Channel) -> None:
        read = self.in_flight.get(channel)
        if read is not None:
            read.stale = True

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


class SingleFlightReads:
    """Reads of the database, at most one of a channel at a time.

    All who ask for a channel in one step of the event loop share one read, whatever
    their requests are. Those who ask later wait for it to end, then look into the cache
    again.

    Args:
        tails: What the reads fill; knows which are under way.
        answer: Answers from memory, or returns None.
        load: Reads all requests of an `InFlightRead`, fills the cache, and returns the
            answers; raises StoreError.
        refusal: Returns why nothing may be read at present, or None.

    Attributes:
        count: Reads so far; each looked at one channel.
    """

    def __init__(
        self,
        tails: TailCache,
        *,
        answer: Callable[[Channel, ReadRequest], HistoryPage | None],
        load: Callable[
            [Channel, InFlightRead], Coroutine[Any, Any, dict[ReadRequest, HistoryPage]]
        ],
        refusal: Callable[[], str | None],
    ) -> None:
        self.count = 0
        self._in_flight = tails.in_flight
        self._answer = answer
        self._load = load
        self._refusal = refusal
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, channel: Channel, request: ReadRequest) -> HistoryPage:
        """Answer a request from memory, or from the database.

        Raises:
            StoreUnavailable: The database cannot be read, or the store is closed.
        """
        while True:
            refusal = self._refusal()
            if refusal is not None:
                raise StoreUnavailable(refusal)
            page = self._answer(channel, request)
            if page is not None:
                return page
            read = self._in_flight.get(channel) or self._begin(channel)
            in_time = not read.started
            if in_time:
                read.requests.add(request)
            answers = await asyncio.shield(read.done)
            if isinstance(answers, str):
                raise StoreUnavailable(answers)
            if in_time:
                page = answers[request]
                return HistoryPage(page.publications.copy(), page.top)

    async def close(self) -> None:
        """Wait for the reads under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _begin(self, channel: Channel) -> InFlightRead:
        loop = asyncio.get_running_loop()
        read = self._in_flight[channel] = InFlightRead(loop.create_future())
        # It starts in the next step of the loop, so all who ask in this one share it.
        task = loop.create_task(self._run(channel, read))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, channel, read))
        return read

    def _ended(
        self, channel: Channel, read: InFlightRead, task: asyncio.Task[None]
    ) -> None:
        """Fail the callers if the task died; the next request begins a new read."""
        self._tasks.discard(task)
        if read.done.done():
            return
        died = None if task.cancelled() else task.exception()
        _log.error("a read died", **describe(died or asyncio.CancelledError()))
        del self._in_flight[channel]
        read.done.set_result("the read was interrupted")

    async def _run(self, channel: Channel, read: InFlightRead) -> None:
        read.started = True
        answers: dict[ReadRequest, HistoryPage] | str | None = self._refusal()
        if answers is None:
            self.count += 1
            try:
                answers = await self._load(channel, read)
            except StoreError as error:
                answers = str(error)
            except Exception as error:
                _log.error("a read failed", **describe(error))
                answers = "the store cannot read"
        del self._in_flight[channel]
        read.done.set_result(answers)


def _cost(publication: Publication) -> int:
    """Return the memory that a publication takes, its wire form included."""
    strings = getsizeof(publication.data)
    if publication.info is not None:
        strings += getsizeof(publication.info)
    if publication.tags is not None:
        strings += getsizeof(publication.tags)
    return OVERHEAD + 2 * strings

"""Cache of channel states and tails, and for how long each is valid.

The listener is told of commits of *this* process. Publications of other processes are
found by reads: the hub compares its subscriptions with HEAD every
``client.position_check`` seconds, and whenever a publication of its own leaves a gap;
hints of other processes (`hearing`) make it read sooner.
So the cache is valid for a limited time: a tail answers for `FRESH` seconds after HEAD
was seen to have its top (by reading HEAD, or by a commit, whose condition proves it),
and for `UNCHANGED` seconds after HEAD's revision was read. Then one read of HEAD, the
smallest there is, makes it valid again if nothing has changed. So a reconnect storm on
one channel costs ten small reads a second, however large it is.

Invariants, on the event loop:

* A caller that is told of a commit finds the cache up to date.
* The result of a read that began before a commit was announced is never given to a
  caller that came after the announcement (see `history_cache`): such a caller waits for
  the read to end and asks again.
* A valid tail was whole when it became valid: it was cached under the revision that was
  read, and a removal by this process forgets it.
* A hint makes nothing valid, and no hint is overtaken by what was known before it: a
  tail is extended by a publication that is next in it; any other hint, and the news
  that a top has moved, makes what was read before it invalid.

The interleavings of a hint, each a test in tests/stores/dynamodb/log: it arrives during
a read that did not see what it tells of (the result is not valid); it tells of what a
read has found already (it changes nothing); one before it was lost (the tail is not
extended over the gap); it belongs to an epoch that is over, or to one that begins.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from service.core.errors import StoreBusy
from service.core.model import Channel, HistoryPage, Position
from service.core.ports import Clock, Committed
from service.stores.dynamodb.errors import OutcomeUnknown
from service.stores.dynamodb.log.items import Head
from service.stores.dynamodb.log.planner import BatchPlan
from service.stores.dynamodb.log.reader import Reader
from service.stores.history_cache import (
    InFlightRead,
    ReadRequest,
    SingleFlightReads,
    Tail,
    TailCache,
)

__all__ = ["ChannelCache"]

CHANNELS = 65_536  # remembered; above, the least recently used is forgotten

FRESH = 0.1  # s until a read sees what another process published
UNCHANGED = 4.0  # s until no read sees what another process removed or erased

SEARCHED = 20_000  # publications, at most, for what was handed over

SIZE = 1 << 30  # publications: the cache's own bound in bytes is enough


class _Known:
    """The remembered state of a channel.

    Attributes:
        head: Its state at the last commit, or None.
        topped: When the tail was last seen to end at HEAD's top, by the clock.
        read: When HEAD's revision was last read, by the clock.
        revision: That revision.
        moved: When others were last said to have moved the top, by the clock: a read
            that was launched before or then is not valid.
    """

    __slots__ = ("head", "moved", "read", "revision", "topped")

    def __init__(self) -> None:
        self.head: Head | None = None
        self.topped = self.read = self.moved = float("-inf")
        self.revision = -1


class ChannelCache:
    """The cached tails and states of one store.

    Args:
        reader: Reads the table.
        clock: Tells what has expired, and what is no longer valid.
        timeout: Of a read, seconds.
        cache_size: Bytes of publications.
        at_once: Channels read at once; more wait in their order, and fail after
            `timeout`.
    """

    def __init__(
        self,
        reader: Reader,
        clock: Clock,
        *,
        timeout: float,
        cache_size: int,
        at_once: int,
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._timeout = timeout
        self._gate = asyncio.Semaphore(at_once)
        self._tails = TailCache(cache_size)
        self._known: OrderedDict[Channel, _Known] = OrderedDict()
        self._refusal: str | None = None
        self._shared_reads = SingleFlightReads(
            self._tails,
            answer=self.answer,
            load=self._load,
            refusal=lambda: self._refusal,
        )

    @property
    def reads(self) -> int:
        """Reads of the table so far; each looked at one channel."""
        return self._shared_reads.count

    async def close(self, refusal: str) -> None:
        """Refuse reads from now on, and wait for those under way."""
        self._refusal = refusal
        await self._shared_reads.close()

    def now(self) -> int:
        """Return Unix milliseconds."""
        return int(self._clock.wall() * 1000)

    # States

    async def head(self, channel: Channel, deadline: float) -> Head:
        """Read a channel's state.

        Raises:
            StoreError: It could not be read.
        """
        return await self._reader.head(channel, self.now(), deadline)

    async def idents(
        self, channel: Channel, since: Position, deadline: float
    ) -> tuple[Head, dict[bytes, Position]]:
        """Return HEAD, and what was handed over of all that was stored behind *since*.

        Raises:
            OutcomeUnknown: It is not all there any more.
            StoreError: It could not be read.
        """
        head = await self.head(channel, deadline)
        _verify_kept(head, since)
        found = await self._reader.idents(channel, head, since.offset, deadline)
        head = await self.head(channel, deadline)  # it may have been removed meanwhile
        _verify_kept(head, since)
        return head, found

    def remembered(self, channel: Channel) -> Head | None:
        """Return a channel's state as of its last commit, if it is known."""
        known = self._known.get(channel)
        if known is None or known.head is None or self._ended(known.head):
            return None
        return known.head

    def _ended(self, head: Head) -> bool:
        return head.top > 0 and head.ends <= self.now()

    def remember(self, channel: Channel, head: Head | None) -> None:
        """Remember a channel's state, or that it is not known."""
        known = self._known.get(channel)
        if known is None:
            if head is None:
                return
            known = self._use(channel)
        known.head = head

    def commit(self, plan: BatchPlan) -> None:
        """Add the publications of a batch that was committed."""
        if not plan.size:
            return
        channel = plan.committed[0].channel
        known = self._use(channel)
        known.head = plan.head
        if self._tails.position(channel) is None:
            # The tail begins here: nothing in it is older than this.
            known.read, known.revision = plan.begun, plan.head.revision
        self._tails.extend(plan.committed, {channel: plan.size})
        known.topped = max(known.topped, plan.begun)

    def told(self, told: Committed, size: int) -> bool:
        """Add what another process is said to have committed, if it is next.

        Args:
            told: With an offset.
            size: The present history size of its channel.

        Returns:
            Whether its epoch is the one that is known here, if one is. If not, nobody
            may be handed it: a read tells which of the two is over.
        """
        channel, publication, epoch = told[:3]
        offset = publication.offset
        position = self._tails.position(channel)
        known = self._use(channel)
        head = known.head
        if head is not None and (head.epoch != epoch or head.top < offset):
            known.head = None  # a batch that is planned with it would be cancelled
        if position is not None and position.epoch != epoch:
            self.moved(channel)
            return False
        if position is not None and offset <= position.offset:
            return True
        if position is None or offset != position.offset + 1:
            # A tail begins here; it is valid when a read has filled what is below.
            self.moved(channel)
        self._tails.extend([told], {channel: size})
        return True

    def moved(self, channel: Channel) -> None:
        """Answer nothing from memory that was read before now."""
        known = self._use(channel)
        known.moved = self._clock.now()

    def _use(self, channel: Channel) -> _Known:
        known = self._known.get(channel)
        if known is None:
            known = self._known[channel] = _Known()
            if len(self._known) > CHANNELS:
                forgotten, _ = self._known.popitem(last=False)
                self._tails.forget(forgotten)
        else:
            self._known.move_to_end(channel)
        return known

    # Reading

    def answer(self, channel: Channel, request: ReadRequest) -> HistoryPage | None:
        """Answer a read from memory, or return None when that is not possible."""
        known = self._known.get(channel)
        if known is None:
            return None
        now = self._clock.now()
        if now - known.topped >= FRESH or now - known.read >= UNCHANGED:
            return None
        if known.topped <= known.moved:
            return None
        if known.head is not None and self._ended(known.head):
            return None
        return self._tails.answer(channel, request, self.now())

    async def read(self, channel: Channel, request: ReadRequest) -> HistoryPage:
        """Read kept publications and the top.

        Raises:
            StoreUnavailable: The table cannot be read, or the store is closed.
        """
        return await self._shared_reads.read(channel, request)

    async def read_fresh(self, channel: Channel, request: ReadRequest) -> HistoryPage:
        """Read without the cache, and without a read that others began.

        Raises:
            StoreError: The table cannot be read.
        """
        deadline = self._clock.now() + self._timeout
        head = await self._reader.head(channel, self.now(), deadline)
        found, pages = await self._reader.load(
            channel, head, {request}, self.now(), deadline
        )
        return found.answer_rest({request}, pages, self.now())[request]

    async def _load(
        self, channel: Channel, read: InFlightRead
    ) -> dict[ReadRequest, HistoryPage]:
        deadline = self._clock.now() + self._timeout
        async with self._gate:
            if self._clock.now() >= deadline:
                raise StoreBusy("too many reads wait for DynamoDB")
            return await self._read(channel, read, deadline)

    async def _read(
        self, channel: Channel, read: InFlightRead, deadline: float
    ) -> dict[ReadRequest, HistoryPage]:
        tails = self._tails
        launched = self._clock.now()
        head = await self._reader.head(channel, self.now(), deadline)
        known = self._use(channel)
        if known.revision != head.revision:
            tails.forget(channel)
        answers: dict[ReadRequest, HistoryPage] = {}
        if tails.position(channel) == head.position:
            # Nothing has changed: only what lies below the cached part must be read.
            now = self.now()
            for request in read.requests:
                page = tails.answer(channel, request, now)
                if page is not None:
                    answers[request] = page
        if len(answers) < len(read.requests):
            left = read.requests - answers.keys()
            found, pages = await self._reader.load(
                channel, head, left, self.now(), deadline
            )
            answers |= found.answer_rest(left, pages, self.now())
            self._merge(channel, found, read)
        if read.stale:
            return answers
        known.read, known.revision = launched, head.revision
        position = tails.position(channel)
        if position is not None and position.epoch == head.epoch:
            if position.offset >= head.top:
                known.topped = max(known.topped, launched)
            if known.head is None or known.head.top <= head.top:
                known.head = head
        return answers

    def _merge(self, channel: Channel, found: Tail, read: InFlightRead) -> None:
        """Add the result of a read to the cache, above or below what is there."""
        position = self._tails.position(channel)
        if position is not None and not read.stale:
            if position.epoch != found.epoch:
                self._tails.forget(channel)
            elif position.offset < found.top:
                # Other processes published. The cached part stays if there is no gap.
                fresh = [p for p in found.publications if p.offset > position.offset]
                if fresh and fresh[0].offset == position.offset + 1:
                    told = [Committed(channel, p, found.epoch) for p in fresh]
                    written = read.written
                    self._tails.extend(told, {channel: SIZE})
                    read.written = written
                else:
                    self._tails.forget(channel)
        self._tails.fill(channel, found, read)

    def distrust(self) -> None:
        """Answer nothing from memory that was valid before: the clock may have stood.

        What is remembered is valid again when HEAD was read and has not changed.
        """
        for known in self._known.values():
            known.read = known.topped = float("-inf")

    def forget(self, channel: Channel) -> None:
        """Forget the cached tail of a channel, and do not cache a read under way."""
        self._tails.blank(channel)
        known = self._known.get(channel)
        if known is not None:
            known.read = known.topped = float("-inf")


def _verify_kept(head: Head, since: Position) -> None:
    """Verify that all that was stored behind *since* is there, and can be searched.

    Raises:
        OutcomeUnknown: It is not.
    """
    if (
        head.epoch != since.epoch
        or head.floor > since.offset
        or head.top > since.offset + SEARCHED
    ):
        raise OutcomeUnknown("the log no longer tells what its owner has stored")

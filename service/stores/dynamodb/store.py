"""The Store port on a DynamoDB table, which any number of processes share.

`append` hands a draft to the channel's `Combiner`; what that commits is told here: the
tail cache takes note, then the listener is told, then each `AppendDone` is called. A
read is answered from the cache, or joins the one read of its channel that is about to
be sent, however many wait for it.

The listener is told of what *this* process commits. Publications of other processes
are found by reads: the hub compares its subscriptions with HEAD every
``client.position_check`` seconds, and with each publication of its own that leaves a
gap. So the cache may not be believed for ever: a tail answers for `FRESH` seconds
after HEAD was seen to have its top (by reading HEAD, or by a commit, which its
condition proves), and for `UNCHANGED` seconds after HEAD's revision was read. Then one
read of HEAD, the smallest there is, makes it good again if nothing has happened.

Invariants:

* A batch is told of in one step of the loop, in the order of commits per channel. So
  whoever runs after it, the listener first, finds the cache up to date.
* A read that was launched before a commit was told of is given to nobody who asked
  after that (see `tail`): such a caller waits for the read to end and asks again.
* Each `done` is called exactly once: with its batch, or by `append` itself, one step of
  the loop later.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from sys import getsizeof

import structlog

from service.errors import StoreBusy, StoreError, StoreUnavailable, describe
from service.model import Appended, Channel, Draft, HistoryPage
from service.ports import AppendDone, Clock, CommitListener, Committed, History
from service.settings import DynamodbSettings, StoreSettings
from service.stores.dynamodb import table
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.combiner import Combiner
from service.stores.dynamodb.items import Head
from service.stores.dynamodb.plan import Plan, Waiting
from service.stores.dynamodb.reading import Reader
from service.stores.dynamodb.removing import Remover
from service.stores.tail import Demand, Flight, Tail, TailCache

__all__ = ["DynamodbStore"]

ENTRY_OVERHEAD = 400  # bytes of a waiting append beside its payload

CHANNELS = 65_536  # whose state is remembered; above, the one unused for longest is not

FRESH = 0.1  # s; what another process published is read no later than this
UNCHANGED = 4.0  # s; what it removed or erased is not read any more after this

SIZE = 1 << 30  # publications: the cache's own bound in bytes is enough

_log = structlog.get_logger(__name__)


class _Known:
    """What is remembered of a channel.

    Attributes:
        head: Its state at the last commit, or None.
        topped: When the tail was last seen to end at HEAD's top, in the clock's time.
        read: When HEAD's revision was last read, in the clock's time.
        revision: What it was.
    """

    __slots__ = ("head", "read", "revision", "topped")

    def __init__(self) -> None:
        self.head: Head | None = None
        self.topped = self.read = float("-inf")
        self.revision = -1


class DynamodbStore:
    """The Store port on a table.

    Args:
        client: Calls DynamoDB; started and closed by its owner.
        settings: Of the table.
        bounds: Of the memory: cache and queue.
        clock: Tells when publications expire, and when to give up.
        chance: Spreads repeats; the system's by default.
    """

    def __init__(
        self,
        client: Client,
        settings: DynamodbSettings,
        bounds: StoreSettings,
        clock: Clock,
        *,
        chance: random.Random | None = None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock
        self._chance = chance or random.SystemRandom()
        self._limit = bounds.queue_size
        self._waiting = 0  # bytes accepted and not yet told of
        self._tails = TailCache(bounds.cache_size)
        self._known: OrderedDict[Channel, _Known] = OrderedDict()
        self._combiners: dict[Channel, Combiner] = {}
        self._turns = asyncio.Semaphore(settings.connections)
        self._tasks: set[asyncio.Task[None]] = set()
        self._reads = 0
        self._open = False
        self._refusal = "the store was not started"

    @property
    def reads(self) -> int:
        """Reads of the table so far; each is one look at one channel."""
        return self._reads

    async def start(self, listener: CommitListener) -> None:
        """See that the table can be used, and begin to serve.

        Raises:
            StartupError: It cannot.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        origin = await table.examine(self._client)
        self._reader = Reader(self._client, origin, self._settings.shards)
        self._remover = Remover(self._client)
        self._open = True
        self._refusal = "the store is closed"

    async def close(self) -> None:
        """Commit what was accepted. Safe to call twice."""
        self._open = False
        while waiting := [c.task for c in self._combiners.values()]:
            await asyncio.wait(waiting)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def fault(self) -> str | None:
        """Return why the store cannot serve, in a few words, or None if it can."""
        return self._client.fault() if self._open else self._refusal

    # Appending

    def append(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        """Accept *draft* for commit; never blocks, never raises."""
        cost = ENTRY_OVERHEAD + getsizeof(draft.data)
        if draft.info is not None:
            cost += getsizeof(draft.info)
        if draft.tags is not None:
            cost += getsizeof(draft.tags)
        waiting = self._waiting + cost
        # One is always accepted, or a payload above the limit never could be.
        if self._open and (waiting <= self._limit or not self._waiting):
            self._waiting = waiting
            deadline = self._clock.now() + self._settings.timeout
            entry = Waiting(draft, history, done, cost, deadline)
            self._combiner(channel).add(entry)
            return
        error: StoreError
        if self._open:
            error = StoreBusy(
                f"{self._waiting} bytes wait for the store, no more than "
                f"{self._limit} may"
            )
        else:
            error = StoreUnavailable(self._refusal)
        asyncio.get_running_loop().call_soon(done, error)

    def _combiner(self, channel: Channel) -> Combiner:
        combiner = self._combiners.get(channel)
        if combiner is None:
            combiner = self._combiners[channel] = Combiner(
                channel,
                self._client,
                self._clock,
                self._chance,
                self._turns,
                self,
                self._idle,
            )
        return combiner

    def _idle(self, channel: Channel) -> None:
        del self._combiners[channel]

    # What a combiner asks (its `Desk`)

    def remembered(self, channel: Channel) -> Head | None:
        """Return a channel's state as of its last commit, if it is known."""
        known = self._known.get(channel)
        if known is None or known.head is None or self._ended(known.head):
            return None
        return known.head

    def _ended(self, head: Head) -> bool:
        return head.top > 0 and head.ends <= self.now()

    async def head(self, channel: Channel, deadline: float) -> Head:
        """Read a channel's state; raises `StoreError`."""
        return await self._reader.head(channel, self.now(), deadline)

    def remember(self, channel: Channel, head: Head | None) -> None:
        """Take note of a channel's state, or that it is not known."""
        known = self._known.get(channel)
        if known is None:
            if head is None:
                return
            known = self._note(channel)
        known.head = head

    def committed(self, made: Plan, batch: list[Waiting]) -> None:
        """Tell everybody of a batch that was committed."""
        if made.committed:
            self._take_note(made)
            try:
                self._listener(made.committed)
            except Exception as error:
                _log.error("the listener of the store failed", **describe(error))
        for waiting, outcome in zip(batch, made.outcomes, strict=True):
            self._tell(waiting, outcome)

    def failed(self, batch: list[Waiting], error: StoreError) -> None:
        """Tell the callers of a batch that was not."""
        for waiting in batch:
            # One for each: an exception that is raised twice mixes its tracebacks.
            self._tell(waiting, type(error)(*error.args))

    def now(self) -> int:
        """Return Unix milliseconds."""
        return int(self._clock.wall() * 1000)

    def _take_note(self, made: Plan) -> None:
        if not made.size:
            return
        channel = made.committed[0].channel
        known = self._note(channel)
        known.head = made.head
        if self._tails.position(channel) is None:
            # The tail begins here: nothing in it is older than this.
            known.read, known.revision = made.begun, made.head.revision
        self._tails.extend(made.committed, {channel: made.size})
        known.topped = max(known.topped, made.begun)

    def _tell(self, waiting: Waiting, outcome: Appended | StoreError) -> None:
        self._waiting -= waiting.cost
        try:
            waiting.done(outcome)
        except Exception as error:
            _log.error("the caller of an append failed", **describe(error))

    def _note(self, channel: Channel) -> _Known:
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

    def peek(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage | None:
        """Answer `read` from memory, or return None when that is not possible."""
        demand = Demand(history.size, history.ttl, since, limit, False)
        return self._answer(channel, demand)

    def _answer(self, channel: Channel, demand: Demand) -> HistoryPage | None:
        known = self._known.get(channel)
        if known is None:
            return None
        now = self._clock.now()
        if now - known.topped >= FRESH or now - known.read >= UNCHANGED:
            return None
        if known.head is not None and self._ended(known.head):
            return None
        return self._tails.answer(channel, demand, self.now())

    async def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        *,
        reverse: bool = False,
    ) -> HistoryPage:
        """Read kept publications and the top; see the port.

        Raises:
            StoreError: The table cannot be read, or the store is closed.
        """
        demand = Demand(history.size, history.ttl, since, limit, reverse)
        flights = self._tails.flights
        while True:
            if not self._open:
                raise StoreUnavailable(self._refusal)
            page = self._answer(channel, demand)
            if page is not None:
                return page
            flight = flights.get(channel)
            if flight is None:
                flight = flights[channel] = Flight(self._loop.create_future())
                # In the next step of the loop, so that all who are about to ask
                # the same are in it.
                self._loop.call_soon(self._launch, channel, flight)
            in_time = not flight.launched
            if in_time:
                flight.demands.add(demand)
            answers = await asyncio.shield(flight.landed)
            if isinstance(answers, str):
                raise StoreUnavailable(answers)
            if in_time:
                page = answers[demand]
                return HistoryPage(page.publications.copy(), page.top)

    def _launch(self, channel: Channel, flight: Flight) -> None:
        flight.launched = True
        if not self._open:
            del self._tails.flights[channel]
            flight.landed.set_result(self._refusal)
            return
        self._reads += 1
        task = self._loop.create_task(self._fly(channel, flight))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fly(self, channel: Channel, flight: Flight) -> None:
        answers: dict[Demand, HistoryPage] | str
        try:
            answers = await self._load(channel, flight)
        except StoreError as error:
            answers = str(error)
        except Exception as error:
            _log.error("a read failed", **describe(error))
            answers = "the store cannot read"
        del self._tails.flights[channel]
        flight.landed.set_result(answers)

    async def _load(
        self, channel: Channel, flight: Flight
    ) -> dict[Demand, HistoryPage]:
        tails = self._tails
        launched = self._clock.now()
        deadline = launched + self._settings.timeout
        head = await self._reader.head(channel, self.now(), deadline)
        known = self._note(channel)
        if known.revision != head.revision:
            tails.forget(channel)
        answers: dict[Demand, HistoryPage] = {}
        if tails.position(channel) == head.position:
            # As it was: only what lies below the cached part has to be read.
            now = self.now()
            for demand in flight.demands:
                page = tails.answer(channel, demand, now)
                if page is not None:
                    answers[demand] = page
        if len(answers) < len(flight.demands):
            left = flight.demands - answers.keys()
            found, pages = await self._reader.load(
                channel, head, left, self.now(), deadline
            )
            now = self.now()
            for demand in left:
                page = pages.get(demand) or found.answer(demand, now)
                if page is None:
                    raise AssertionError("what a read was asked for, it has")
                answers[demand] = page
            self._merge(channel, found, flight)
        if flight.cut:
            return answers
        known.read, known.revision = launched, head.revision
        position = tails.position(channel)
        if position is not None and position.epoch == head.epoch:
            if position.offset >= head.top:
                known.topped = max(known.topped, launched)
            if known.head is None or known.head.top <= head.top:
                known.head = head
        return answers

    def _merge(self, channel: Channel, found: Tail, flight: Flight) -> None:
        """Put what a read found into the cache, behind or below what is there."""
        position = self._tails.position(channel)
        if position is not None and not flight.cut:
            if position.epoch != found.epoch:
                self._tails.forget(channel)
            elif position.offset < found.top:
                # Others published. What is cached stays if nothing lies between.
                fresh = [p for p in found.publications if p.offset > position.offset]
                if fresh and fresh[0].offset == position.offset + 1:
                    told = [Committed(channel, p, found.epoch) for p in fresh]
                    written = flight.written
                    self._tails.extend(told, {channel: SIZE})
                    flight.written = written
                else:
                    self._tails.forget(channel)
        self._tails.fill(channel, found, flight)

    # Removing and erasing

    async def remove(self, channel: Channel) -> None:
        """Delete a channel's publications; its top and epoch stay.

        Raises:
            StoreError: It is not known to be removed.
        """
        if not self._open:
            raise StoreUnavailable(self._refusal)
        removed: asyncio.Future[None] = self._loop.create_future()

        async def remove() -> None:
            try:
                await self._remove(channel)
            except StoreError as error:
                if not removed.done():
                    removed.set_exception(error)
            else:
                if not removed.done():
                    removed.set_result(None)

        self._combiner(channel).add(remove)
        await removed

    async def _remove(self, channel: Channel) -> None:
        deadline = self._clock.now() + self._settings.timeout
        head = await self._reader.head(channel, self.now(), deadline)
        if not head.top:
            return
        try:
            await self._remover.hide(channel, head)
        finally:
            self._forget(channel)
        await self._remover.remove(channel, head)

    async def erase(self, info: str) -> int:
        """Blank every publication whose ``info`` begins with *info*; see the port.

        Raises:
            StoreError: Some may be left.
        """
        if not self._open:
            raise StoreUnavailable(self._refusal)
        count, channels = await self._remover.erase(info)
        for channel in channels:
            self._forget(channel)
        return count

    def _forget(self, channel: Channel) -> None:
        flight = self._tails.flights.get(channel)
        if flight is not None:
            flight.cut = True
        self._tails.forget(channel)
        known = self._known.get(channel)
        if known is not None:
            known.read = known.topped = float("-inf")

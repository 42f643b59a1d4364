"""The Store port on a DynamoDB table, which any number of processes share.

`append` hands a draft to the channel's `ChannelAppender`; what that commits is told
here: the tail cache takes note, then the listener is told, then each `AppendDone` is
called. A read is answered from the cache, or joins the one read of its channel that is
about to be sent (`ChannelCache`).

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
from functools import partial

import structlog

from service.core.errors import StoreError, StoreUnavailable, describe
from service.core.model import Appended, Channel, Draft, HistoryPage
from service.core.ports import AppendDone, Clock, CommitListener, History
from service.settings import DynamodbSettings, StoreSettings
from service.stores.append_budget import AppendBudget
from service.stores.dynamodb import table
from service.stores.dynamodb.client import Client, Connect, connect
from service.stores.dynamodb.log.appender import ChannelAppender, Job
from service.stores.dynamodb.log.cache import ChannelCache
from service.stores.dynamodb.log.planner import Plan, Waiting
from service.stores.dynamodb.log.reader import Reader
from service.stores.dynamodb.log.remover import Remover
from service.stores.dynamodb.state import DynamodbState
from service.stores.history_cache import ReadRequest

__all__ = ["DynamodbStore"]

_log = structlog.get_logger(__name__)


class DynamodbStore:
    """The Store port on a table.

    Args:
        settings: Of the table.
        bounds: Of the memory: cache and queue.
        clock: Tells when publications expire, and when to give up.
        chance: Spreads repeats; the system's by default.
        connect: Makes the boto client.

    Attributes:
        client: Calls DynamoDB; lives as long as the store.
        state: The State port on the same table.
    """

    def __init__(
        self,
        settings: DynamodbSettings,
        bounds: StoreSettings,
        clock: Clock,
        *,
        rng: random.Random | None = None,
        connect: Connect = connect,
    ) -> None:
        self.client = Client(settings, clock, rng=rng, connect=connect)
        self.state = DynamodbState(self.client, clock)
        self._settings = settings
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._intake = AppendBudget(bounds.queue_size)
        self._cache_size = bounds.cache_size
        self._view: ChannelCache | None = None
        self._combiners: dict[Channel, ChannelAppender] = {}
        self._turns = asyncio.Semaphore(settings.connections)
        self._open = False
        self._refusal = "the store was not started"

    @property
    def reads(self) -> int:
        """Reads of the table so far; each is one look at one channel."""
        return self._view.reads if self._view is not None else 0

    async def start(self, listener: CommitListener) -> None:
        """See that the table can be used, and begin to serve.

        Raises:
            StartupError: It cannot.
        """
        self._listener = listener
        await self.client.start()
        origin = await table.examine(self.client)
        self._view = ChannelCache(
            Reader(self.client, origin, self._settings.shards),
            self._clock,
            timeout=self._settings.timeout,
            cache_size=self._cache_size,
            # The other half of the threads is left to appends, however many channels
            # are read at once.
            at_once=max(1, self._settings.connections // 2),
        )
        self._remover = Remover(self.client)
        self._open = True
        self._refusal = "the store is closed"

    async def close(self) -> None:
        """Commit what was accepted, then release everything. Safe to call twice."""
        self._open = False
        while waiting := [c.task for c in self._combiners.values()]:
            await asyncio.wait(waiting)
        if self._view is not None:
            await self._view.close(self._refusal)
        await self.client.close()

    def fault(self) -> str | None:
        """Return why the store cannot serve, in a few words, or None if it can."""
        return self.client.fault() if self._open else self._refusal

    # Appending

    def append(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        """Accept *draft* for commit; never blocks, never raises."""
        error: StoreError
        if not self._open:
            error = StoreUnavailable(self._refusal)
        elif (cost := self._intake.accept(draft)) is None:
            error = self._intake.full()
        else:
            deadline = self._clock.now() + self._settings.timeout
            entry = Waiting(draft, history, done, cost, deadline)
            self._combiner(channel).add(entry)
            return
        asyncio.get_running_loop().call_soon(done, error)

    def _combiner(self, channel: Channel) -> ChannelAppender:
        combiner = self._combiners.get(channel)
        if combiner is None:
            combiner = self._combiners[channel] = ChannelAppender(
                channel,
                self.client,
                self._clock,
                self._rng,
                self._turns,
                self._seen,
                self,
                self._idle,
            )
        return combiner

    def _idle(self, channel: Channel) -> None:
        del self._combiners[channel]

    # What a combiner tells (its `Desk`)

    def committed(self, made: Plan, batch: list[Waiting]) -> None:
        """Tell everybody of a batch that was committed."""
        try:
            if made.committed:
                self._seen.take_note(made)
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

    def _tell(self, waiting: Waiting, outcome: Appended | StoreError) -> None:
        self._intake.release(waiting.cost)
        try:
            waiting.done(outcome)
        except Exception as error:
            _log.error("the caller of an append failed", **describe(error))

    # Reading

    def peek(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage | None:
        """Answer `read` from memory, or return None when that is not possible."""
        if not self._open:
            return None
        request = ReadRequest(history.size, history.ttl, since, limit, False)
        return self._seen.answer(channel, request)

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
            StoreUnavailable: The table cannot be read, or the store is closed.
        """
        if not self._open:
            raise StoreUnavailable(self._refusal)
        request = ReadRequest(history.size, history.ttl, since, limit, reverse)
        return await self._seen.read(channel, request)

    @property
    def _seen(self) -> ChannelCache:
        if self._view is None:
            raise AssertionError("nothing is asked before the start")
        return self._view

    # Removing and erasing

    async def remove(self, channel: Channel) -> None:
        """Delete a channel's publications; its top and epoch stay.

        Raises:
            StoreError: It is not known to be removed.
        """
        if not self._open:
            raise StoreUnavailable(self._refusal)
        job = Job(partial(self._remove, channel))
        self._combiner(channel).add(job)
        await job.ended

    async def _remove(self, channel: Channel) -> None:
        deadline = self._clock.now() + self._settings.timeout
        head = await self._seen.head(channel, deadline)
        if not head.top:
            return
        try:
            await self._remover.hide(channel, head)
        finally:
            self._seen.forget(channel)
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
            self._seen.forget(channel)
        return count

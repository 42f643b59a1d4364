"""The Store port on a DynamoDB table, which any number of processes share.

`append` gives a draft to the `ChannelAppender` of its channel, which is made when it is
needed. When a batch has been committed, `committed` updates the `ChannelCache`, tells
the listener, and calls each `AppendDone`. `read` answers from the cache, or joins the
one read of the channel that is about to begin (`history_cache.SingleFlightReads`).

Invariants:

* A batch is announced in one step of the loop, in the order of the channel's commits.
  So all code that runs after it, the listener first, finds the cache up to date.
* A hint is in the cache before the hearer is told of it, in one step of the loop.
* Each `done` is called exactly once: with its batch, or one step of the loop after
  `append` refused it.
* Reads use at most half of the client's threads, so that appends do not wait for them,
  however many channels are read at once.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Literal

import structlog

from service.core.broker import Broker
from service.core.circuit_breaker import Breaker
from service.core.errors import (
    StoreError,
    StoreTooLarge,
    StoreUnavailable,
    describe,
)
from service.core.lease import HoldTaker
from service.core.model import (
    Appended,
    Channel,
    Draft,
    HistoryPage,
    Position,
    size_of,
)
from service.core.ports import (
    AppendDone,
    Clock,
    CommitListener,
    Committed,
    Hearer,
    History,
)
from service.settings import DynamodbSettings, StoreSettings
from service.stores.append_budget import AppendBudget
from service.stores.dynamodb import table
from service.stores.dynamodb.broker_outages import BrokerOutages
from service.stores.dynamodb.client import Client, Connect
from service.stores.dynamodb.lease import DynamodbLeases
from service.stores.dynamodb.log.appender import ChannelAppender, Job
from service.stores.dynamodb.log.cache import ChannelCache
from service.stores.dynamodb.log.handover import Handover
from service.stores.dynamodb.log.head_watch import HeadWatch
from service.stores.dynamodb.log.planner import BatchPlan, PendingAppend, Taking
from service.stores.dynamodb.log.reader import Reader
from service.stores.dynamodb.log.remover import Remover
from service.stores.dynamodb.peers import Peers
from service.stores.dynamodb.state import DynamodbState
from service.stores.dynamodb.subscribers import DynamodbSubscribers
from service.stores.history_cache import ReadRequest

__all__ = ["DynamodbStore"]

LARGEST = 120 * 1024
"""Bytes of a publication that the gateway can post, with `dynamodb.leases`: 128 KiB,
less the channel's name and what else is in its frame."""

_log = structlog.get_logger(__name__)


def _is_too_large(draft: Draft) -> bool:
    texts = draft.data, draft.info or "", draft.tags or ""
    return sum(map(size_of, texts)) > LARGEST


class DynamodbStore:
    """The Store port on a table.

    Args:
        settings: Of the table.
        bounds: Sizes of the cache and the queue.
        clock: Tells when publications expire, and when to give up.
        rng: Spreads repeats; the system's by default.
        connect: Makes the boto client.
        broker: Carries hints; None for polls alone.

    Attributes:
        backend: As in the settings.
        broker: The same.
        client: Calls DynamoDB; lives as long as the store.
        state: The State port on the same table.
        leases: The owners of channels.
        peers: What other processes mean for the polls.
        subscribers: The rows of those whose sockets end at the gateway.
        holder: Delivers under the leases that appends take, if `dynamodb.leases` is on.
            Without one, HEAD remembers the duty, and whoever watches over expired
            leases delivers.
    """

    backend: Literal["dynamodb"] = "dynamodb"

    def __init__(
        self,
        settings: DynamodbSettings,
        bounds: StoreSettings,
        clock: Clock,
        *,
        rng: random.Random | None = None,
        connect: Connect | None = None,
        broker: Broker | None = None,
    ) -> None:
        self.broker = broker
        self.client = Client(settings, clock, rng=rng, connect=connect)
        self.state = DynamodbState(self.client, clock)
        self._settings = settings
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._budget = AppendBudget(bounds.queue_size)
        self._reader = Reader(self.client, settings.shards)
        self._remover = Remover(self.client)
        self.leases = DynamodbLeases(
            self.client, self._reader, clock, settings.timeout, settings.shards
        )
        self.subscribers = DynamodbSubscribers(self.client, self.leases, clock)
        self.holder: HoldTaker | None = None
        self._cache = ChannelCache(
            self._reader,
            clock,
            timeout=settings.timeout,
            cache_size=bounds.cache_size,
            at_once=max(1, settings.connections // 2),
        )
        self._heads = HeadWatch(self.client, self._reader, clock, self.moved)
        self._heads.poll_covered("functions tell nobody", settings.leases)
        self.peers = Peers(self._heads, clock, alone=not settings.leases)
        self._hearer: Hearer | None = None
        self._outages: BrokerOutages | None = None
        self._handover: Handover | None = None
        if broker is not None:
            self._handover = Handover(broker, clock, self._rng, self._accept)
            broker.receive(self._handover.received)
        self._appenders: dict[Channel, ChannelAppender] = {}
        self._slots = asyncio.Semaphore(settings.connections)
        self._open = False
        self._refusal = "the store was not started"

    @property
    def breaker(self) -> Breaker:
        """The circuit breaker of all calls."""
        return self.client.breaker

    @property
    def queue_used(self) -> float:
        """The part of `store.queue_size` that appends take while they wait."""
        return self._budget.used

    @property
    def origin(self) -> str:
        """The table's id; a table that was restored from a backup has another."""
        return self._reader.origin

    @property
    def handed_over(self) -> int:
        """Appends so far that other processes have stored for this one."""
        return 0 if self._handover is None else self._handover.given

    @property
    def reads(self) -> int:
        """Reads of the table so far, each of one channel."""
        return self._cache.reads

    async def start(
        self, listener: CommitListener, hearer: Hearer | None = None
    ) -> None:
        """Verify that the table can be used, and begin to serve.

        Raises:
            StartupError: It cannot be used.
        """
        self._listener, self._hearer = listener, hearer
        await self.client.start()
        self._reader.origin = await table.verify(self.client, self._settings)
        self._open = True
        self._refusal = "the store is closed"
        if self.broker is not None:
            await self.broker.start(self, self.origin)
            self._outages = BrokerOutages(
                self.broker, self.state, self._heads, self._clock
            )
            self._outages.start()

    async def close(self) -> None:
        """Commit what was accepted, then release everything. Safe to call twice."""
        self._open = False
        while waiting := [each.task for each in self._appenders.values()]:
            await asyncio.wait(waiting)
        if self._outages is not None:
            await self._outages.close()
        if self.broker is not None:  # what was committed last is told, too
            await self.broker.close()
        await self._heads.close()
        await self._cache.close(self._refusal)
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
        elif self._settings.leases and _is_too_large(draft):
            error = StoreTooLarge(f"the gateway posts no more than {LARGEST} bytes")
        elif (cost := self._budget.accept(draft)) is None:
            error = self._budget.full()
        else:
            deadline = self._clock.now() + self._settings.timeout
            pending = PendingAppend(draft, history, done, cost, deadline)
            self._appender(channel).add(pending)
            return
        asyncio.get_running_loop().call_soon(done, error)

    def _accept(self, channel: Channel, pending: PendingAppend) -> bool:
        """Queue an append of another process; False if there is no room."""
        cost = self._budget.accept(pending.draft) if self._open else None
        if cost is None:
            return False
        pending.cost = cost
        self._appender(channel).add(pending)
        return True

    def _appender(self, channel: Channel) -> ChannelAppender:
        appender = self._appenders.get(channel)
        if appender is None:
            appender = self._appenders[channel] = ChannelAppender(
                channel,
                self.client,
                self._clock,
                self._rng,
                self._slots,
                self._cache,
                self,
                self._idle,
                self._taking if self._settings.leases else None,
                self._handover,
            )
        return appender

    def _taking(self) -> Taking:
        return Taking(uuid.uuid4().hex, self.holder is None or self.holder.hands_over)

    def _idle(self, channel: Channel) -> None:
        del self._appenders[channel]

    # The `CommitSink` of the appenders

    def committed(self, plan: BatchPlan, batch: list[PendingAppend]) -> None:
        """Announce a batch that was committed as planned."""
        try:
            if plan.committed:
                self._cache.commit(plan)
                if plan.size:
                    self._heads.known(plan.committed[0].channel, plan.head.position)
                self._listener(plan.committed)
        except Exception as error:
            _log.error("the listener of the store failed", **describe(error))
        if plan.hold is not None and self.holder is not None:
            try:
                self.holder.took(plan.hold)
            except Exception as error:
                _log.error("the holder of a lease failed", **describe(error))
        if plan.committed and self.broker is not None:
            self.broker.publish(plan.committed)
        if plan.elsewhere is not None:
            self._stored_elsewhere(*plan.elsewhere)
        for pending, outcome in zip(batch, plan.outcomes, strict=True):
            self._end(pending, outcome)

    def _stored_elsewhere(self, channel: Channel, top: Position) -> None:
        """Take note of what another process has stored for this one."""
        self._cache.moved(channel)
        self._cache.remember(channel, None)
        if self._hearer is not None and self._heads.history(channel) is not None:
            self._hearer.moved(channel, top)

    def failed(self, batch: list[PendingAppend], error: StoreError) -> None:
        """Fail the callers of a batch."""
        for pending in batch:
            # One each: an exception that is raised twice mixes its tracebacks.
            self._end(pending, type(error)(*error.args))

    def _end(self, pending: PendingAppend, outcome: Appended | StoreError) -> None:
        self._budget.release(pending.cost)
        try:
            pending.done(outcome)
        except Exception as error:
            _log.error("the caller of an append failed", **describe(error))

    # Hearing of what others commit (also `core.broker.BrokerListener`)

    def follow(self, channel: Channel, history: History) -> None:
        """Hear what other processes publish to a channel."""
        if self._hearer is None or not self._open:
            return
        self._heads.follow(channel, history)
        if self.broker is not None:
            self.broker.follow(channel)

    def unfollow(self, channel: Channel) -> None:
        """Hear it no more."""
        if self._heads.history(channel) is not None:
            self._heads.unfollow(channel)
            if self.broker is not None:
                self.broker.unfollow(channel)

    def told(self, batch: Sequence[Committed]) -> None:
        """Take note of what other processes committed, then tell the hearer."""
        if self._hearer is None or not self._open:
            return
        heard: list[Committed] = []
        for told in batch:
            channel, publication, epoch = told[:3]
            history = self._heads.history(channel)
            if history is None:
                continue
            if publication.offset:
                top = Position(publication.offset, epoch)
                if not history.size or not self._cache.told(told, history.size):
                    self._hearer.moved(channel, top)
                    continue
                self._heads.known(channel, top)
            heard.append(told)
        if heard:
            self._hearer.told(heard)

    def moved(self, channel: Channel, top: Position) -> None:
        """Take note that other processes have moved a top, then tell the hearer."""
        if self._hearer is not None and self._heads.history(channel) is not None:
            self._cache.moved(channel)
            self._hearer.moved(channel, top)

    def look(self, channel: Channel) -> None:
        """Read a channel's top soon."""
        self._heads.look(channel)

    def confirmed(self, channel: Channel) -> None:
        """Read a channel's top once more, then rely on the broker's hints."""
        self._heads.cover(channel)

    def lost(self) -> None:
        """Poll: no hints arrive, and no answers."""
        self._heads.uncover()
        if self._handover is not None:
            self._handover.lost()

    # Reading

    def knows(self, channel: Channel) -> bool:
        """Tell from memory whether the channel has had a publication."""
        head = self._cache.remembered(channel)
        return head is not None and head.top > 0

    def peek(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage | None:
        """Answer `read` from memory, or return None when that is not possible."""
        if not self._open:
            return None
        request = ReadRequest(history.size, history.ttl, since, limit, False)
        return self._cache.answer(channel, request)

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
        return await self._cache.read(channel, request)

    async def read_fresh(
        self, channel: Channel, history: History, since: int | None, limit: int
    ) -> HistoryPage:
        """Answer `read` from the table alone, and from a read that begins now.

        For a subscribe at the gateway, whose row was stored before: what the read does
        not find is delivered by the holder of the channel's lease, who saw the row.

        Raises:
            StoreUnavailable: The table cannot be read, or the store is closed.
        """
        if not self._open:
            raise StoreUnavailable(self._refusal)
        request = ReadRequest(history.size, history.ttl, since, limit, False)
        return await self._cache.read_fresh(channel, request)

    def distrust(self) -> None:
        """Answer nothing from memory that was valid before now: this may be a thaw."""
        self._cache.distrust()
        self.client.breaker.catch_up()

    # Removing and erasing

    async def remove(self, channel: Channel) -> None:
        """Delete a channel's publications; its top and epoch stay.

        Raises:
            StoreError: Some or all may be left. If the floor was raised, no reader
                returns them; the items go with a repeat, or when they expire.
        """
        if not self._open:
            raise StoreUnavailable(self._refusal)
        job = Job(partial(self._remove, channel))
        self._appender(channel).add(job)
        await job.ended

    async def _remove(self, channel: Channel) -> None:
        deadline = self._clock.now() + self._settings.timeout
        head = await self._cache.head(channel, deadline)
        if not head.top:
            return
        try:
            await self._remover.hide(channel, head)
        finally:
            self._cache.forget(channel)
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
            self._cache.forget(channel)
        return count

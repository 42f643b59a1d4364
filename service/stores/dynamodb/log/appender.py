"""One channel's appends: everything that waits goes into the next transaction.

Contention, not DynamoDB, limits a channel: with a transaction for each publication, 32
publishers fail most of the time. So each process has one writer for each channel that
is being written to, with one transaction under way: what is appended meanwhile waits
for the next one.

Writers in several processes meet at HEAD: one is first, the others' conditions fail.
They learn the new top from that, but who was first has it sooner; a busy one would go
on for ever and the others get nothing. So who has lost `PATIENCE` times *asks*:
it raises a number in HEAD that every condition names, and is given the top by the same
call. Until they have learnt that number the others fail, and who fails for it alone
waits for about as long as a transaction takes. Of several that ask, the last is first.

Invariants, all on the event loop:

* One batch at a time, in the order of the calls; the next one is not planned before
  the outcome of this one is known or given up. So the appends of one caller commit in
  their order, across conflicts and repeats. A batch that was given up may still arrive
  at DynamoDB: its condition names the top that it was planned with, so it comes before
  the next one or not at all.
* What is told to the store is told once for each batch, in offset order.
* A task lives while something waits; `idle` is called when it ends, before anything
  can be added. So whoever finds no combiner makes a new one, and there is never a
  second one of a channel.
* Each append is told its outcome, even if the task dies: then all that waits fails, and
  `idle` is called too.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from _speedups import backoff_full_jitter
from service.core.errors import StoreBusy, StoreError, StoreUnavailable, describe
from service.core.model import Channel, Position
from service.core.ports import Clock
from service.stores.dynamodb.client import Client, sleep
from service.stores.dynamodb.errors import (
    ConditionFailed,
    OutcomeUnknown,
    TransactionCancelled,
)
from service.stores.dynamodb.log.cache import ChannelCache
from service.stores.dynamodb.log.items import (
    BATCH,
    Head,
    decode_head,
    decode_key,
    encode_draft,
    head_key,
    key_of,
)
from service.stores.dynamodb.log.planner import Plan, Waiting, apply_failure, plan

__all__ = ["ChannelAppender", "Job"]

BATCH_BYTES = 256 * 1024  # of rows; a single larger one is a batch by itself

# Another process was faster. Short at first: whoever lost knows the new top already.
AGAIN_BASE, AGAIN_CAP = 0.005, 0.3  # s
PATIENCE = 2  # losses in a row

NOWHERE = Head("")  # the state of a channel that nobody asks for

_log = structlog.get_logger(__name__)


class Job:
    """Work to do between two batches of a channel.

    Args:
        work: Does it.

    Attributes:
        ended: Its outcome.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work = work

    async def run(self) -> None:
        """Do the work, whose error goes to `ended`."""
        try:
            await self._work()
        except Exception as error:
            self.fail(error)
        else:
            if not self.ended.done():
                self.ended.set_result(None)

    def fail(self, error: Exception) -> None:
        """Set the outcome, if somebody still waits for it."""
        if not self.ended.done():
            self.ended.set_exception(error)


class CommitSink(Protocol):
    """Whom a combiner tells."""

    def committed(self, made: Plan, batch: list[Waiting]) -> None:
        """Tell everybody of a batch that was committed."""
        ...

    def failed(self, batch: list[Waiting], error: StoreError) -> None:
        """Tell the callers of a batch that was not."""
        ...


class ChannelAppender:
    """The appends of one channel that wait, and the task that commits them.

    Args:
        channel: The channel.
        client: Calls DynamoDB.
        clock: Of the deadlines and pauses.
        chance: Spreads repeats.
        turns: Bounds the batches of all channels under way at once.
        view: What is known of channels.
        desk: Is told of each batch.
        idle: Called when nothing waits any more.

    Attributes:
        task: Commits; it has ended when nothing waits.
    """

    def __init__(
        self,
        channel: Channel,
        client: Client,
        clock: Clock,
        rng: random.Random,
        turns: asyncio.Semaphore,
        view: ChannelCache,
        desk: CommitSink,
        idle: Callable[[Channel], None],
    ) -> None:
        self._channel = channel
        self._client = client
        self._clock = clock
        self._rng = rng
        self._turns = turns
        self._view = view
        self._desk = desk
        self._idle = idle
        self._queue: deque[Waiting | Job] = deque()
        self._batch: list[Waiting] = []  # under way
        self.task = asyncio.get_running_loop().create_task(self._run())
        self.task.add_done_callback(self._ended)

    def add(self, what: Waiting | Job) -> None:
        """Queue an append, or a job to do after those that wait."""
        self._queue.append(what)

    async def _run(self) -> None:
        while self._queue:
            first = self._queue[0]
            if isinstance(first, Job):
                await first.run()
                self._queue.popleft()
            else:
                async with self._turns:
                    await self._commit()
        self._idle(self._channel)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Fail all that waits if the task died; the next append makes a new appender.

        A batch that was under way may be stored, now or later.
        """
        if task.cancelled():
            reason = {"error": "CancelledError"}
        elif (died := task.exception()) is not None:
            reason = describe(died)
        else:
            return
        _log.error("the task that stores a channel's appends died", **reason)
        self._idle(self._channel)
        self._view.remember(self._channel, None)
        batch, self._batch = self._batch, []
        self._desk.failed(batch, OutcomeUnknown("the append was interrupted"))
        while self._queue:
            what = self._queue.popleft()
            error = StoreUnavailable("the append was interrupted before it was sent")
            if isinstance(what, Job):
                what.fail(OutcomeUnknown("the job was interrupted"))
            else:
                self._desk.failed([what], error)

    def _take(self) -> None:
        """Take the next batch; tell those that cannot be in it."""
        size = 0
        now = self._clock.now()
        while self._queue and len(self._batch) < BATCH:
            waiting = self._queue[0]
            if not isinstance(waiting, Waiting):
                break
            error: StoreError | None = None
            if waiting.deadline <= now:
                error = StoreBusy("it waited too long for DynamoDB")
            else:
                try:
                    waiting.row = encode_draft(waiting.draft)
                    self._channel.encode()
                    waiting.draft.idempotency_key.encode()
                except UnicodeEncodeError:
                    error = StoreError("cannot be stored: it is not valid Unicode")
            if error is None:
                size += len(waiting.row)
                if self._batch and size > BATCH_BYTES:
                    break
                self._batch.append(waiting)
            self._queue.popleft()
            if error is not None:
                self._desk.failed([waiting], error)

    async def _commit(self) -> None:
        self._take()
        if not self._batch:
            return
        error: StoreError
        try:
            made = await self._store(self._batch, self._batch[0].deadline)
        except StoreError as failure:
            error = failure
        except Exception as failure:
            _log.error("a batch was not stored", **describe(failure))
            error = OutcomeUnknown(f"DynamoDB: {type(failure).__name__}")
        else:
            batch, self._batch = self._batch, []
            self._desk.committed(made, batch)
            return
        # Perhaps it was done, or will be: then HEAD is not what we think.
        self._view.remember(self._channel, None)
        batch, self._batch = self._batch, []
        self._desk.failed(batch, error)

    async def _store(self, batch: list[Waiting], deadline: float) -> Plan:
        """Store a batch, planning it as often as others come first.

        Raises:
            StoreError: It was not stored, or nobody knows.
        """
        known: dict[str, Position | None] = {}
        head: Head | None = NOWHERE
        fresh = not any(waiting.history.size for waiting in batch)
        if not fresh:
            head = self._view.remembered(self._channel)
        losses = 0
        while True:
            if head is None:
                head = await self._view.head(self._channel, deadline)
                fresh = True
            now = self._view.now()
            made = plan(self._client.table, self._channel, batch, head, known, now)
            if made.lookups:
                for key in made.lookups:
                    known[key] = await self._look_up(key, deadline)
                continue
            if made.skips and not made.size and not fresh:
                head = None  # what is skipped depends on it, and no condition says so
                continue
            if not made.actions:
                return made
            made.begun = self._clock.now()
            try:
                request = {"TransactItems": made.actions}
                await self._client.call(
                    "transact_write_items", request, deadline=deadline
                )
            except TransactionCancelled as cancelled:
                expected = head
                head = apply_failure(cancelled, made, self._channel, head, known, now)
            else:
                return made
            fresh = False
            if head is expected:
                continue  # it was a key, and nobody was faster
            if head is not None and head.stored == expected.stored:
                # Somebody asks, and has as long as this took to go first.
                taken = self._clock.now() - made.begun
                await self._sleep(taken * (1.0 + self._rng.random()), deadline)
            else:
                losses += 1
                head = await self._lost(head, losses, deadline)

    async def _look_up(self, key: str, deadline: float) -> Position | None:
        request = {
            "TableName": self._client.table,
            "Key": key_of(self._channel, key),
            "ConsistentRead": True,
        }
        answer = await self._client.call("get_item", request, deadline=deadline)
        return decode_key(answer.get("Item"), self._view.now())

    async def _lost(
        self, head: Head | None, losses: int, deadline: float
    ) -> Head | None:
        """Pause, and ask if need be; return the state to plan with, if it is known."""
        jitter = self._rng.random()
        pause = backoff_full_jitter(losses - 1, jitter, AGAIN_BASE, AGAIN_CAP)
        await self._sleep(pause, deadline)
        if head is None or losses < PATIENCE:
            return head
        return await self._ask(head, deadline)

    async def _ask(self, head: Head, deadline: float) -> Head | None:
        """Ask to be let in; return the state to plan with, None if there is no HEAD."""
        request = {
            "TableName": self._client.table,
            "Key": head_key(self._channel),
            "UpdateExpression": "ADD #asks :one",
            "ConditionExpression": "attribute_exists(pk)",
            "ExpressionAttributeNames": {"#asks": "asks"},
            "ExpressionAttributeValues": {":one": {"N": "1"}},
            "ReturnValues": "ALL_NEW",
        }
        try:
            answer = await self._client.call("update_item", request, deadline=deadline)
        except ConditionFailed:
            return None
        item, now = answer["Attributes"], self._view.now()
        return decode_head(item, head.origin, self._channel, head.shards, now)

    async def _sleep(self, pause: float, deadline: float) -> None:
        if self._clock.now() + pause >= deadline:
            raise StoreBusy("others were faster each time")
        await sleep(self._clock, pause)

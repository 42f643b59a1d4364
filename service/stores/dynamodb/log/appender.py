"""Appends of one channel, committed in batches: one transaction at a time.

Contention limits a channel, not DynamoDB: with a transaction for each publication, 32
publishers fail most of the time. So each process has one writer for each channel that
is being written to, with one transaction under way: what is appended meanwhile goes
into the next one.

Writers in several processes meet at HEAD: one of them wins, and the conditions of the
others fail. They learn the new top from the failure, but the winner knows it sooner; a
busy winner would go on for ever, and starve the others. So a writer that has lost
`PATIENCE` times requests precedence: it increments a number in HEAD that every
condition names, and gets the present top with the same call. The other writers then
fail until they have learnt that number, and a writer that fails for it alone waits for
about as long as a transaction takes. If several request precedence, the last one wins.

With a broker, a writer that has lost `PATIENCE` times hands its batch to the owner of
the channel first (`handover`). The others that do so never meet at HEAD.

Where the deployment has leases (`core.lease`), the conditions name the owner too. One
that fails for the owner alone was a wrong guess of free, held or dead: it is neither a
loss nor a request for precedence, and the batch is planned again at once, with a new
token. Since a wrong guess costs a whole transaction, and HEAD changes with every
release, it is read before each batch. When a batch that would take the lease has no
answer until the deadline, HEAD is read once more: with its token there, it is stored.

Invariants, all on the event loop:

* One batch at a time, in the order of the calls; the next one is not planned before
  the outcome of this one is known or given up. So the appends of one caller commit in
  their order, across conflicts and repeats. A batch that was given up may still arrive
  at DynamoDB: its condition names the top that it was planned with, so it comes before
  the next one or not at all.
* The store is told of each batch once, in offset order.
* A task lives while something waits; `idle` is called when it ends, before anything
  can be added. So a caller that finds no appender makes a new one, and a channel never
  has two.
* Each append is told its outcome, even if the task dies: then all that waits fails, and
  `idle` is called too.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import structlog

from _speedups import backoff_full_jitter
from service.core.clock import sleep
from service.core.errors import StoreBusy, StoreError, StoreUnavailable, describe
from service.core.lease import LEASE_SECONDS, POST_SECONDS
from service.core.model import Appended, Channel, Position
from service.core.ports import Clock
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.errors import (
    ConditionFailed,
    OutcomeUnknown,
    TransactionCancelled,
)
from service.stores.dynamodb.log.cache import ChannelCache
from service.stores.dynamodb.log.handover import Handover
from service.stores.dynamodb.log.items import (
    BATCH,
    Head,
    decode_head,
    decode_key,
    encode_draft,
    head_key,
    key_of,
)
from service.stores.dynamodb.log.planner import (
    BatchPlan,
    OwnerChanged,
    PendingAppend,
    Taking,
    apply_failure,
    plan_batch,
)

__all__ = ["ChannelAppender", "Job"]

BATCH_BYTES = 256 * 1024  # of rows; a single larger one is a batch by itself

# Pauses after another process won. Short at first: the loser knows the new top already.
LOST_BASE, LOST_CAP = 0.005, 0.3  # s
PATIENCE = 2  # losses in a row before a request for precedence

LAST_LOOK = 0.8  # s for the read of HEAD after an outcome that is unknown

NO_HEAD = Head("")  # for a batch that needs no offsets

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
        """Do the work; its error goes to `ended`."""
        try:
            await self._work()
        except Exception as error:
            self.fail(error)
        else:
            if not self.ended.done():
                self.ended.set_result(None)

    def fail(self, error: Exception) -> None:
        """Set the outcome, if a caller still waits for it."""
        if not self.ended.done():
            self.ended.set_exception(error)


class CommitSink(Protocol):
    """Receives the outcome of each batch."""

    def committed(self, plan: BatchPlan, batch: list[PendingAppend]) -> None:
        """Announce a batch that was committed as planned."""

    def failed(self, batch: list[PendingAppend], error: StoreError) -> None:
        """Fail the callers of a batch."""


class ChannelAppender:
    """The pending appends of one channel, and the task that commits them.

    Args:
        channel: The channel.
        client: Calls DynamoDB.
        clock: Times deadlines and pauses.
        rng: Spreads repeats.
        slots: Bounds the batches of all channels under way at once.
        cache: Remembers the channel's state.
        sink: Receives the outcomes.
        idle: Called when nothing waits any more.
        taking: Returns how the next transaction takes the lease; None without leases.
        handover: Hands appends to the owners of channels; None without a broker.

    Attributes:
        task: Commits; ends when nothing waits.
    """

    def __init__(
        self,
        channel: Channel,
        client: Client,
        clock: Clock,
        rng: random.Random,
        slots: asyncio.Semaphore,
        cache: ChannelCache,
        sink: CommitSink,
        idle: Callable[[Channel], None],
        taking: Callable[[], Taking] | None = None,
        handover: Handover | None = None,
    ) -> None:
        self._handover = handover
        self._doubt: Position | None = None  # the batch may be stored behind it
        self._taking = taking
        self._channel = channel
        self._client = client
        self._clock = clock
        self._rng = rng
        self._slots = slots
        self._cache = cache
        self._sink = sink
        self._idle = idle
        self._queue: deque[PendingAppend | Job] = deque()
        self._batch: list[PendingAppend] = []  # under way
        self.task = asyncio.get_running_loop().create_task(self._run())
        self.task.add_done_callback(self._ended)

    def add(self, what: PendingAppend | Job) -> None:
        """Queue an append, or a job to do after those that wait."""
        self._queue.append(what)

    async def _run(self) -> None:
        while self._queue:
            first = self._queue[0]
            if isinstance(first, Job):
                await first.run()
                self._queue.popleft()
            else:
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
        self._cache.remember(self._channel, None)
        batch, self._batch = self._batch, []
        self._sink.failed(batch, OutcomeUnknown("the append was interrupted"))
        while self._queue:
            what = self._queue.popleft()
            error = StoreUnavailable("the append was interrupted before it was sent")
            if isinstance(what, Job):
                what.fail(OutcomeUnknown("the job was interrupted"))
            else:
                self._sink.failed([what], error)

    def _take(self) -> None:
        """Take the next batch, if there is none; fail what cannot be in it."""
        if self._batch:
            return
        size = 0
        now = self._clock.now()
        while self._queue and len(self._batch) < BATCH:
            pending = self._queue[0]
            if not isinstance(pending, PendingAppend):
                break
            error: StoreError | None = None
            if pending.handed is not None and pending.handed.failed:
                error = StoreBusy("what was handed over before it was not stored")
            elif pending.deadline <= now:
                error = StoreBusy("it waited too long for DynamoDB")
            else:
                try:
                    pending.row = encode_draft(pending.draft)
                    self._channel.encode()
                    pending.draft.idempotency_key.encode()
                    pending.draft.version_epoch.encode()
                except UnicodeEncodeError:
                    error = StoreError("cannot be stored: it is not valid Unicode")
            if error is None:
                size += len(pending.row)
                if self._batch and size > BATCH_BYTES:
                    break
                self._batch.append(pending)
            self._queue.popleft()
            if error is not None:
                self._sink.failed([pending], error)

    async def _commit(self) -> None:
        error: StoreError
        self._doubt = None
        try:
            plan = await self._store()
        except StoreError as failure:
            error = failure
        except Exception as failure:
            _log.error("a batch was not stored", **describe(failure))
            error = OutcomeUnknown(f"DynamoDB: {type(failure).__name__}")
        else:
            batch, self._batch = self._batch, []
            self._sink.committed(plan, batch)
            return
        # It may be stored, now or later: then HEAD is not what is remembered.
        self._cache.remember(self._channel, None)
        if self._doubt is not None and not isinstance(error, OutcomeUnknown):
            error = OutcomeUnknown("the owner of the channel may have stored it")
        batch, self._batch = self._batch, []
        stored = BatchPlan(NO_HEAD)
        found = [pending for pending in batch if pending.stored is not None]
        for pending in found:
            assert pending.stored is not None
            stored.outcomes.append(Appended(pending.stored, True))
            stored.elsewhere = self._channel, pending.stored
        self._sink.committed(stored, found)
        self._sink.failed([p for p in batch if p.stored is None], error)

    async def _store(self) -> BatchPlan:
        """Take a batch, and store it here or with the owner of the channel.

        Raises:
            StoreError: It was not stored, or the outcome is unknown.
        """
        known: dict[str, Position | None] = {}
        handover = self._handover
        owner = None if handover is None else handover.owner(self._channel)
        if owner is not None:
            self._take()
            handed = await self._hand_over(*owner)
            if handed is not None:
                return handed
        async with self._slots:
            self._take()
            if not self._batch:
                return BatchPlan(NO_HEAD)
            found = await self._write(known, asks=handover is not None)
        if isinstance(found, BatchPlan):
            return found
        # Without a slot: it waits for another process, which may wait for this one.
        handed = await self._hand_over(found.by, found.position)
        if handed is not None:
            return handed
        async with self._slots:
            found = await self._write(known, asks=False)
        assert isinstance(found, BatchPlan)  # it returns HEAD only if it is asked
        return found

    async def _write(
        self, known: dict[str, Position | None], *, asks: bool
    ) -> BatchPlan | Head:
        """Store the batch, planning it again each time that another process wins.

        Args:
            known: Keys whose use is known.
            asks: Return HEAD as soon as its owner might do it better.

        Raises:
            StoreError: It was not stored, or the outcome is unknown.
        """
        batch, deadline = self._batch, self._deadline()
        head: Head | None = NO_HEAD
        fresh = not any(pending.history.size for pending in batch)
        if not fresh:
            head = await self._begin(deadline)
        losses = 0
        while True:
            if head is None:
                head = await self._cache.head(self._channel, deadline)
                fresh = True
            self._refuse(head)
            plan = self._plan(batch, head, known)
            if plan.lookups:
                for key in plan.lookups:
                    known[key] = await self._look_up(key, deadline)
                continue
            if plan.skips and not plan.size and not fresh:
                head = None  # skipping depends on it, and no condition verifies it
                continue
            cancelled: TransactionCancelled | None = None
            if plan.actions:
                cancelled = await self._send(plan, deadline)
            if cancelled is None:
                return self._done(plan)
            expected, now = head, self._cache.now()
            head = apply_failure(cancelled, plan, self._channel, head, known, now)
            fresh = False
            if head is expected:
                continue  # a key was taken, and no other writer won
            if head is None or head.stored != expected.stored:
                losses += 1
                if asks and losses == PATIENCE and self._has_owner(head):
                    assert head is not None
                    return head
                head = await self._after_loss(head, losses, deadline)
            else:
                await self._give_way(plan, expected, head, deadline)

    def _has_owner(self, head: Head | None) -> bool:
        """Return whether the batch can be handed to the owner in *head*."""
        handover = self._handover
        if handover is None or head is None:
            return False
        return handover.can_take(self._channel, head.by)

    async def _begin(self, deadline: float) -> Head | None:
        """Return the state to plan with, None if it has to be read.

        First, what was handed over without an answer is found, or fenced off.

        Raises:
            StoreError: That is not possible.
        """
        handover = self._handover
        if handover is None:
            return self._remembered()
        if term := handover.fence(self._channel):
            await self._end_term(term, handover.new_term(), deadline)
            handover.fenced(self._channel)
            self._cache.remember(self._channel, None)
        if self._doubt is None:
            return self._remembered()
        head, idents = await self._cache.idents(self._channel, self._doubt, deadline)
        for pending in self._batch:
            pending.stored = idents.get(pending.ident)
        self._doubt = None
        return head

    async def _end_term(self, term: str, by: str, deadline: float) -> None:
        """Name another owner in HEAD, if it names this one.

        Raises:
            StoreError: It may still name it.
        """
        request = {
            "TableName": self._client.table,
            "Key": head_key(self._channel),
            "UpdateExpression": "SET #by = :by",
            "ConditionExpression": "#by = :term",
            "ExpressionAttributeNames": {"#by": "by"},
            "ExpressionAttributeValues": {":by": {"S": by}, ":term": {"S": term}},
        }
        with suppress(ConditionFailed):  # it has ended
            await self._client.call("update_item", request, deadline=deadline)

    def _deadline(self) -> float:
        """Return when to give up the batch: what is of this process decides."""
        own = [p.deadline for p in self._batch if p.handed is None]
        return min(own) if own else max(p.deadline for p in self._batch)

    def _remembered(self) -> Head | None:
        if self._taking is not None:
            return None
        return self._cache.remembered(self._channel)

    def _plan(
        self,
        batch: list[PendingAppend],
        head: Head,
        known: dict[str, Position | None],
    ) -> BatchPlan:
        table, now = self._client.table, self._cache.now()
        taking = None if self._taking is None else self._taking()
        claim = ""
        if self._handover is not None and head is not NO_HEAD:
            claim = self._handover.claim(head)
        plan = plan_batch(table, self._channel, batch, head, known, now, taking, claim)
        plan.begun = self._clock.now()
        if plan.hold is not None:
            ends = plan.begun + LEASE_SECONDS - POST_SECONDS
            plan.hold = plan.hold._replace(deadline=ends)
        return plan

    def _refuse(self, head: Head) -> None:
        """Fail the appends of others that were meant for another term."""
        for pending in self._batch[:]:
            if pending.handed is not None and (
                pending.handed.failed or pending.handed.term != head.by
            ):
                self._batch.remove(pending)
                self._sink.failed([pending], OwnerChanged(head.by))

    async def _hand_over(self, term: str, since: Position) -> BatchPlan | None:
        """Hand the batch to the owner; return its outcomes, None to write it here."""
        handover, batch = self._handover, self._batch
        assert handover is not None
        if not batch or not handover.can_hand_over(batch):
            return None
        answer, deadline = None, self._deadline()
        for _ in range(2):
            if not handover.can_take(self._channel, term):
                return None
            self._doubt = since  # also if this is cancelled
            answer = await handover.ask(self._channel, batch, term, since, deadline)
            if answer is None or answer.state == "failed":
                return None
            self._doubt = None
            if answer.state != "moved":
                break
            term = answer.term
        assert answer is not None
        if len(answer.rows) != len(batch):
            return None
        plan = BatchPlan(NO_HEAD)
        plan.outcomes = answer.appended()
        top = max(outcome.position for outcome in plan.outcomes)
        plan.elsewhere = self._channel, top
        return plan

    def _done(self, plan: BatchPlan) -> BatchPlan:
        """Return a plan that was committed, with what the owner had stored already."""
        for pending in self._batch:
            if pending.stored is not None:
                plan.elsewhere = self._channel, pending.stored
        return plan

    async def _send(
        self, plan: BatchPlan, deadline: float
    ) -> TransactionCancelled | None:
        """Commit a plan; return why that was cancelled, if it was.

        Raises:
            StoreError: It is not stored, or the outcome is unknown.
        """
        try:
            request = {"TransactItems": plan.actions}
            await self._client.call("transact_write_items", request, deadline=deadline)
        except TransactionCancelled as cancelled:
            return cancelled
        except OutcomeUnknown:
            if not await self._took(plan):
                raise
        return None

    async def _took(self, plan: BatchPlan) -> bool:
        """Return whether HEAD names the hold of a batch that had no answer."""
        if plan.hold is None:
            return False
        deadline = self._clock.now() + LAST_LOOK
        try:
            head = await self._cache.head(self._channel, deadline)
        except StoreError:
            return False
        return head.owner == plan.hold.token

    async def _look_up(self, key: str, deadline: float) -> Position | None:
        request = {
            "TableName": self._client.table,
            "Key": key_of(self._channel, key),
            "ConsistentRead": True,
        }
        answer = await self._client.call("get_item", request, deadline=deadline)
        return decode_key(answer.get("Item"), self._cache.now())

    async def _after_loss(
        self, head: Head | None, losses: int, deadline: float
    ) -> Head | None:
        """Pause; return the state to plan with, None if it has to be read."""
        jitter = self._rng.random()
        pause = backoff_full_jitter(losses - 1, jitter, LOST_BASE, LOST_CAP)
        await self._sleep(pause, deadline)
        if head is None or losses < PATIENCE:
            return head
        return await self._request_precedence(head, deadline)

    async def _give_way(
        self, plan: BatchPlan, expected: Head, head: Head, deadline: float
    ) -> None:
        """Wait as a condition demands that failed although no other writer won."""
        if head.asks != expected.asks:
            # Another writer requests precedence: give it as long as this took.
            taken = self._clock.now() - plan.begun
            await self._sleep(taken * (1.0 + self._rng.random()), deadline)
        elif self._clock.now() >= deadline:
            # The owner alone was another one than was read, or is dead by now.
            raise StoreBusy("the channel had another owner each time")

    async def _request_precedence(self, head: Head, deadline: float) -> Head | None:
        """Return the state to plan with, None if there is no HEAD."""
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
        item, now = answer["Attributes"], self._cache.now()
        return decode_head(item, head.origin, self._channel, head.shards, now)

    async def _sleep(self, pause: float, deadline: float) -> None:
        if self._clock.now() + pause >= deadline:
            raise StoreBusy("other processes wrote first each time")
        await sleep(self._clock, pause)

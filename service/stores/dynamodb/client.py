"""Asynchronous DynamoDB client: threads, repeats within a deadline, circuit breaker.

botocore blocks, so each attempt runs in one of a bounded number of threads. botocore
repeats nothing: repeats are decided here, where the deadline and the breaker are known
and every attempt is counted.

Invariants:

* `call` ends by its deadline, whatever the network does. An attempt that is still
  under way then is left to its thread (its timeouts end it), and its outcome
  counts as unknown.
* A transaction whose attempt had no answer is repeated with the same
  ``ClientRequestToken``, so DynamoDB does it once (it promises this for 10 minutes; a
  call takes at most 5 s). It gets a new token only while no attempt is unknown.
* Every answer closes the breaker, failed conditions and throttling included. Attempts
  without an answer open it, and refusals: no table, no permission.
* While the breaker is open nothing is sent but its probe, and `call` fails at once.

Event loop only, except `_send`, which runs in a thread and uses nothing but the clock
and the boto client, which threads may share.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, NoRegionError
from botocore.session import Session

from _speedups import backoff, backoff_full_jitter
from service.core.circuit_breaker import Breaker, BreakerState
from service.core.clock import sleep
from service.core.errors import (
    StartupError,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    describe,
)
from service.core.ports import Clock
from service.settings import DynamodbSettings
from service.stores.dynamodb.errors import (
    Failure,
    Item,
    OutcomeUnknown,
    Throttled,
    classify,
)
from service.stores.dynamodb.models import SERVICE, load_quickly

__all__ = [
    "Client",
    "Connect",
    "Operation",
    "gather_limited",
    "opened",
    "query_all",
]

CONNECT_TIMEOUT = 1.0  # s
READ_TIMEOUT = 2.0  # s
PATIENCE = 1.0  # s without an answer from which on the breaker counts a failure

# Contention ends in milliseconds, throttling in tenths of a second: capacity is given
# by the second. Full jitter, so that two processes that collided do not collide again.
CONTENTION_BASE, CONTENTION_CAP = 0.01, 0.2  # s
THROTTLE_BASE, THROTTLE_CAP = 0.05, 1.0  # s

WAITING = 64  # calls for each thread may wait; more are refused at once

AT_ONCE = 8  # calls of one `gather_limited`, so that others find a thread

T = TypeVar("T")

Operation = Literal[
    "batch_get_item",
    "batch_write_item",
    "create_table",
    "delete_item",
    "delete_table",
    "describe_table",
    "describe_time_to_live",
    "get_item",
    "put_item",
    "query",
    "scan",
    "transact_get_items",
    "transact_write_items",
    "update_item",
    "update_time_to_live",
]

Connect = Callable[[DynamodbSettings], Any]
"""Makes the boto client; called in a thread."""

_log = structlog.get_logger(__name__)


def _connect(client: Client, settings: DynamodbSettings) -> Any:
    """Return a boto client for DynamoDB. Blocks: it reads files.

    Raises:
        StartupError: The region is missing, or botocore rejects its settings.
    """
    try:
        # Not by boto3: it takes 0.1 s more to import, at each cold start.
        load_quickly(client.session)
        return client.session.create_client(
            SERVICE,
            region_name=settings.region or None,
            endpoint_url=settings.endpoint or None,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                retries={"mode": "standard", "total_max_attempts": 1},
                max_pool_connections=settings.connections,
                tcp_keepalive=True,
            ),
        )
    except NoRegionError as error:
        raise StartupError(
            "DynamoDB needs a region: set dynamodb.region or AWS_DEFAULT_REGION"
        ) from error
    except (BotoCoreError, ValueError) as error:
        raise StartupError(f"DynamoDB cannot be used: {error}") from error


class Client:
    """Calls DynamoDB for one table.

    Args:
        settings: Region, endpoint, table, threads and the timeout.
        clock: Times deadlines, pauses and the breaker.
        rng: Spreads repeats; the system's by default.
        connect: Makes the boto client; botocore by default.

    Attributes:
        table: The table's name, for requests.
        breaker: Its circuit breaker.
        attempts: Attempts so far, repeats and probes included.
        repeats: Of these, the repeats.
    """

    def __init__(
        self,
        settings: DynamodbSettings,
        clock: Clock,
        *,
        rng: random.Random | None = None,
        connect: Connect | None = None,
    ) -> None:
        self.table = settings.table
        self.attempts = 0
        self.repeats = 0
        self._settings = settings
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._connect = connect or partial(_connect, self)
        self._boto: Any = None
        self._threads = ThreadPoolExecutor(settings.connections, "dynamodb")
        self._waiting = 0  # attempts that have not ended
        self._probing: asyncio.Task[None] | None = None
        self._closed = False
        self.breaker = Breaker(
            clock,
            probe=self._begin_probe,
            cleanup=self._disconnect,
            rng=self._rng,
            changed=self._changed,
        )

    @cached_property
    def session(self) -> Session:
        """The session of botocore, which finds credentials."""
        return Session()

    async def start(self) -> None:
        """Make the boto client; sends nothing.

        Raises:
            StartupError: botocore rejects the settings.
        """
        loop = asyncio.get_running_loop()
        self._boto = await loop.run_in_executor(
            self._threads, self._connect, self._settings
        )

    async def close(self) -> None:
        """Wait for the attempts under way, then release everything."""
        self._closed = True
        self.breaker.close()
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        if self._boto is not None:
            self._disconnect()

    def fault(self) -> str | None:
        """Return why DynamoDB cannot be used at present, or None if it can."""
        if self.breaker.closed:
            return None
        return f"DynamoDB: {self.breaker.reason}"

    async def call(
        self,
        operation: Operation,
        request: dict[str, Any],
        *,
        deadline: float | None = None,
    ) -> dict[str, Any]:
        """Do one operation, repeating it as long as that can help.

        Args:
            operation: A method of the boto client.
            request: Its arguments. A transaction's token is added here.
            deadline: Give up at this time of the clock; ``settings.timeout`` from now
                by default.

        Raises:
            ConditionFailed: The condition does not hold.
            NoTable: The table to describe does not exist.
            TransactionCancelled: A condition of the transaction does not hold.
            Throttled: The table was throttled until the deadline.
            OutcomeUnknown: An attempt had no answer until the deadline.
            StoreUnavailable: DynamoDB was not reached, or refused; nothing was done.
            StoreBusy: Too many calls wait for a thread; nothing was done.
            StoreError: The request can never be done.
        """
        if deadline is None:
            deadline = self._clock.now() + self._settings.timeout
        transaction = operation == "transact_write_items"
        token = ""
        unknown = False
        failed: Counter[str] = Counter()  # attempts, by kind: each has its own pauses
        while True:
            if self._closed:
                raise self._unavailable("the store is closed", unknown=unknown)
            if not self.breaker.closed:
                raise self._unavailable(self.breaker.reason, unknown=unknown)
            if transaction and not (token and unknown):
                token = str(uuid.uuid4())
                request = {**request, "ClientRequestToken": token}
            ended = await self._attempt(operation, request, deadline, repeated=unknown)
            if not isinstance(ended, Failure):
                return ended
            unknown = unknown or ended.unknown
            if ended.error is not None:
                raise ended.error
            pause = self._pause(ended, failed[ended.kind])
            failed[ended.kind] += 1
            if pause is None or self._clock.now() + pause >= deadline:
                raise self._given_up(operation, ended, unknown=unknown)
            await sleep(self._clock, pause)
            self.repeats += 1

    async def _attempt(
        self,
        operation: Operation,
        request: dict[str, Any],
        deadline: float,
        *,
        repeated: bool,
    ) -> dict[str, Any] | Failure:
        """Send once; return the answer or the failure, and tell the breaker."""
        if self._waiting >= WAITING * self._settings.connections:
            raise StoreBusy(f"{self._waiting} calls wait for DynamoDB")
        begun: list[float] = []
        work: Future[dict[str, Any]] = self._threads.submit(
            self._send, operation, request, begun
        )
        self._waiting += 1
        self.attempts += 1
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        work.add_done_callback(partial(self._wake, loop, ended))
        timer = self._clock.call_at(deadline, partial(_settle, ended))
        try:
            await ended
        finally:
            timer.cancel()
            if not work.done():
                work.cancel()
        if work.cancelled():
            raise StoreBusy("no thread was free for DynamoDB in time")
        if not work.done():
            failure = Failure("transport", True, "no answer in time")
            if not begun or self._clock.now() - begun[0] < PATIENCE:
                return failure  # it waited for a thread, not for DynamoDB
        else:
            error = work.exception()
            if error is None:
                self.breaker.succeeded()
                return work.result()
            classified = classify(error, repeated=repeated)
            if classified is None:
                raise error
            failure = classified
        if failure.kind in ("transport", "refused"):
            self.breaker.failed(failure.text)
            if self.breaker.closed:
                _log.warning("DynamoDB has failed a call", reason=failure.text)
        else:
            self.breaker.succeeded()
        return failure

    def _send(
        self, operation: Operation, request: dict[str, Any], begun: list[float]
    ) -> dict[str, Any]:
        begun.append(self._clock.now())
        answer: dict[str, Any] = getattr(self._boto, operation)(**request)
        return answer

    def _wake(
        self,
        loop: asyncio.AbstractEventLoop,
        ended: asyncio.Future[None],
        _: Future[dict[str, Any]],
    ) -> None:
        # In the thread, or on the loop if it was cancelled before it began.
        try:
            loop.call_soon_threadsafe(self._finished, ended)
        except RuntimeError:
            return  # the loop is closed: nothing waits any more

    def _finished(self, ended: asyncio.Future[None]) -> None:
        self._waiting -= 1
        _settle(ended)

    def _pause(self, failure: Failure, attempt: int) -> float | None:
        """Return the seconds until the next attempt, or None to give up."""
        jitter = self._rng.random()
        if failure.kind == "contention":
            return backoff_full_jitter(attempt, jitter, CONTENTION_BASE, CONTENTION_CAP)
        if failure.kind == "throttle":
            return backoff_full_jitter(attempt, jitter, THROTTLE_BASE, THROTTLE_CAP)
        if failure.kind == "transport":
            return backoff(attempt, jitter)
        return None

    def _given_up(
        self, operation: Operation, failure: Failure, *, unknown: bool
    ) -> StoreError:
        if failure.kind == "invalid" and not unknown:
            _log.error(
                "DynamoDB rejects a request", operation=operation, why=failure.text
            )
            return StoreError(f"DynamoDB rejects the request: {failure.text}")
        if failure.kind in ("throttle", "contention") and not unknown:
            return Throttled(f"DynamoDB takes no more at present: {failure.text}")
        return self._unavailable(failure.text, unknown=unknown)

    def _unavailable(self, text: str, *, unknown: bool) -> StoreUnavailable:
        kind = OutcomeUnknown if unknown else StoreUnavailable
        return kind(f"DynamoDB: {text}")

    # For the breaker

    def _begin_probe(self) -> None:
        self._probing = asyncio.get_running_loop().create_task(self._probe())

    async def _probe(self) -> None:
        """Read one item, whether or not it exists; report exactly one outcome."""
        key = {"pk": {"S": "PROBE"}, "sk": {"S": "PROBE"}}
        deadline = self._clock.now() + self._settings.timeout
        request = {"TableName": self.table, "Key": key}
        reason = "no thread was free for the probe"
        try:
            await self._attempt("get_item", request, deadline, repeated=False)
        except StoreBusy as error:  # it was not sent
            reason = str(error)
        except BaseException as error:
            reason = type(error).__name__
            if not isinstance(error, Exception):
                raise
            _log.error("a probe of DynamoDB failed", **describe(error))
        finally:
            # An attempt that did not reach the table, or was cancelled, has told the
            # breaker nothing: without a report it would be half-open for ever.
            if self.breaker.state == "half-open":
                self.breaker.failed(reason)

    def _disconnect(self) -> None:
        """Drop the idle connections: new ones resolve the host name again."""
        self._boto.close()

    def _changed(self, state: BreakerState, reason: str) -> None:
        if state == "closed" and reason:
            _log.info("DynamoDB is called again, to see whether it answers")
        elif state == "closed":
            _log.info("DynamoDB answers again")
        elif state == "open":
            _log.warning("DynamoDB is not called for a while", reason=reason)


@asynccontextmanager
async def opened(settings: DynamodbSettings, clock: Clock) -> AsyncIterator[Client]:
    """Yield a client that is closed at the end of the block."""
    client = Client(settings, clock)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


async def query_all(
    client: Client, partition: str, *, prefix: str = "", consistent: bool = True
) -> AsyncIterator[Item]:
    """Yield the items of a partition, in the order of their sort keys.

    Args:
        client: Calls the table.
        partition: The partition key.
        prefix: Of the sort keys; "" for all.
        consistent: Whether all earlier writes must be seen.

    Raises:
        StoreError: They cannot all be read.
    """
    request: dict[str, Any] = {
        "TableName": client.table,
        "KeyConditionExpression": "pk = :pk",
        "ExpressionAttributeValues": {":pk": {"S": partition}},
        "ConsistentRead": consistent,
    }
    if prefix:
        request["KeyConditionExpression"] += " AND begins_with(sk, :prefix)"
        request["ExpressionAttributeValues"][":prefix"] = {"S": prefix}
    while True:
        answer = await client.call("query", request)
        for item in answer["Items"]:
            yield item
        if "LastEvaluatedKey" not in answer:
            return
        request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


async def gather_limited(work: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results of all awaitables, `AT_ONCE` of them under way at a time.

    All are tried; then the first error is raised, if there was one.
    """
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(each: Awaitable[T]) -> T:
        async with gate:
            return await each

    ended = await asyncio.gather(*(one(each) for each in work), return_exceptions=True)
    results = []
    for each in ended:
        if isinstance(each, BaseException):
            raise each
        results.append(each)
    return results


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

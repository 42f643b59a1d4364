"""A client on an emulator, and faults between it and the emulator."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError

from service.core.broker import Broker
from service.core.ports import CommitListener, Hearer, Timer
from service.settings import DynamodbSettings, StoreSettings
from service.stores.dynamodb import table
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.store import DynamodbStore
from tests.clock import VirtualClock
from tests.harness.emulators import running

SESSION = boto3.session.Session()  # a model of the API takes 50 ms to load


class StoreClock:
    """Real time for what waits on the network; the wall clock is a virtual one's.

    Attributes:
        ahead: Seconds to add to both: what was remembered becomes older.
    """

    def __init__(self, virtual: VirtualClock) -> None:
        self.ahead = 0.0
        self._virtual = virtual

    def now(self) -> float:
        return time.monotonic() + self.ahead

    def wall(self) -> float:
        return self._virtual.wall() + self.ahead

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, when - self.now()), callback)


class Faults:
    """Faults of one boto client's calls, by operation.

    ``before`` functions are asked before a request is sent, ``after`` ones when its
    answer is there; both are given the operation's name, as ``PutItem``. A ``before``
    may return an answer in place of the emulator's (see `refusal`); each may raise
    what botocore raises. They run in the client's threads.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []  # every request that was about to be sent
        self.before: list[Callable[[str], AWSResponse | None]] = []
        self.after: list[Callable[[str], None]] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []  # parsed

    def connect(self, settings: DynamodbSettings) -> Any:
        """Return a boto client with these faults."""
        boto = SESSION.client(
            "dynamodb",
            region_name=settings.region,
            endpoint_url=settings.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(
                connect_timeout=5,
                read_timeout=10,  # machines are shared
                retries={"mode": "standard", "total_max_attempts": 1},
                max_pool_connections=settings.connections,
            ),
        )
        boto.meta.events.register_first("before-send.dynamodb", self._before)
        boto.meta.events.register_first("response-received.dynamodb", self._after)
        return boto

    def count(self, operation: str) -> int:
        return self.calls.count(operation)

    def _before(self, request: Any, event_name: str, **_: object) -> AWSResponse | None:
        operation = event_name.rpartition(".")[2]
        self.calls.append(operation)
        self.requests.append((operation, json.loads(request.body)))
        for fault in list(self.before):
            answer = fault(operation)
            if answer is not None:
                return answer
        return None

    def _after(self, event_name: str, exception: Any, **_: object) -> None:
        if exception is None:
            for fault in list(self.after):
                fault(event_name.rpartition(".")[2])


def refusal(code: str, status: int = 400, **body: object) -> AWSResponse:
    """Return the answer of a DynamoDB that refuses a request with *code*."""
    body["__type"] = f"com.amazonaws.dynamodb.v20120810#{code}"
    raw = _Raw(json.dumps(body).encode())
    return AWSResponse("http://127.0.0.1/", status, {}, raw)


def served(body: str) -> AWSResponse:
    """Return an answer that the emulator did not give."""
    return AWSResponse("http://127.0.0.1/", 200, {}, _Raw(body.encode()))


def conflict(actions: int) -> AWSResponse:
    """Return what a transaction meets when another one holds its first item."""
    reasons = [{"Code": "TransactionConflict"}] + [{"Code": "None"}] * (actions - 1)
    return refusal("TransactionCanceledException", CancellationReasons=reasons)


def lost(operation: str) -> None:
    """Lose an answer: as an ``after`` fault, the request was done."""
    raise ConnectionClosedError(endpoint_url="http://127.0.0.1/")


def timed_out(operation: str) -> None:
    """Wait for an answer in vain."""
    raise ReadTimeoutError(endpoint_url="http://127.0.0.1/")


class _Raw:
    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self, **_: object) -> Any:
        yield self._body


def client_for(
    settings: DynamodbSettings, clock: Any, faults: Faults | None = None, seed: int = 1
) -> Client:
    faults = faults or Faults()
    return Client(settings, clock, rng=random.Random(seed), connect=faults.connect)


@asynccontextmanager
async def made(settings: DynamodbSettings, clock: Any) -> AsyncIterator[Client]:
    """Give a client for a while, without faults."""
    client = client_for(settings, clock)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


class TableStore:
    """A `DynamodbStore` with a client and a table of its own.

    Attributes:
        client: Its client.
        store: The store itself.
        clock: Of both.
    """

    def __init__(
        self,
        settings: DynamodbSettings,
        clock: Any,
        faults: Faults | None = None,
        seed: int = 1,
        broker: Broker | None = None,
        **bounds: object,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.store = DynamodbStore(
            settings,
            StoreSettings(**bounds),  # type: ignore[arg-type]
            clock,
            rng=random.Random(seed),
            connect=(faults or Faults()).connect,
            broker=broker,
        )
        self.client = self.store.client
        self.append, self.knows, self.peek, self.read = (
            self.store.append,
            self.store.knows,
            self.store.peek,
            self.store.read,
        )
        self.follow, self.unfollow, self.told, self.moved = (
            self.store.follow,
            self.store.unfollow,
            self.store.told,
            self.store.moved,
        )
        self.remove, self.erase, self.fault, self.close = (
            self.store.remove,
            self.store.erase,
            self.store.fault,
            self.store.close,
        )

    async def start(
        self, listener: CommitListener, hearer: Hearer | None = None
    ) -> None:
        # Without time to live: ministack deletes by the real time, every minute, what
        # has expired three years ago by the virtual one.
        async with made(self.settings, self.clock) as client:
            if await table.check(client, self.settings) == ["it does not exist"]:
                await client.call("create_table", table.definition(self.settings))
                if self.settings.leases:
                    await client.call(
                        "put_item",
                        {"TableName": client.table, "Item": table.LEASES},
                    )
        await self.store.start(listener, hearer)


def on_emulator(
    name: str,
    path: Path,
    clock: VirtualClock,
    faults: Faults | None = None,
    connections: int = 16,
    shards: int = 1,
    timeout: float = 60.0,  # machines are shared
    leases: bool = False,
    **bounds: object,
) -> TableStore:
    """Return a store on an emulator; the same *path* names the same table."""
    settings = running(name).settings(
        table=f"test-{zlib.crc32(str(path).encode()):08x}-{os.getpid()}",
        connections=connections,
        shards=shards,
        timeout=timeout,
        leases=leases,
    )
    return TableStore(settings, StoreClock(clock), faults, **bounds)

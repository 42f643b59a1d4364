"""What delivery at the gateway costs, in units that the service reports, and in posts.

The rows are those of docs/serverless.md, "What it costs".
"""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path

import pytest

from service.core.model import Channel, ClientId, Draft, RawJson, UserId
from service.core.ports import Claim, History, Posted, SubscriberRow
from service.core.sessions import Terms
from service.gateway.rounds import Rounds
from service.settings import StoreSettings
from service.stores.dynamodb.registry.connections import AdmissionLimits
from service.stores.dynamodb.sessions import DynamodbSessions
from service.stores.dynamodb.store import DynamodbStore
from tests.clock import VirtualClock
from tests.stores.dynamodb.support import StoreClock, TableStore
from tests.stores.dynamodb.units import UnitCounter

DOC = Path(__file__).resolve().parents[2] / "docs" / "serverless.md"
ROW = re.compile(
    r"^\| ([^|]+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| \$([\d.]+) \|$", re.M
)
WRITE, READ, POST = 0.625, 0.125, 1.0  # dollars per million
NEWS = Channel("news")
KEPT = History(100, 3600.0)
TEXT = RawJson('"' + "x" * 298 + '"')


def budget():
    section = DOC.read_text().split("\n## What it costs\n")[1].split("\n## ")[0]
    return {name: tuple(map(float, rest)) for name, *rest in ROW.findall(section)}


class Bench:
    """A store with leases, and the rounds of a holder whose posts are counted."""

    def __init__(self, store, meter, clock):
        self.store = store
        self.meter = meter
        self.posts = 0
        self.holds = []
        self.hands_over = False
        self.tokens = 0
        store.holder = self
        self.sessions = DynamodbSessions(
            store.client,
            store.subscribers,
            AdmissionLimits(3, 100, "evict_lru", 7200.0),
            clock,
            client_limit=1000,
            timeout=4.0,
            origin=lambda: "table",
            rng=random.Random(1),
        )
        self.rounds = Rounds(
            store.leases,
            store.subscribers,
            store.leases,
            self,
            clock,
            token=self.token,
            forget=self.forget,
        )

    def token(self):
        self.tokens += 1
        return f"{self.tokens:032}"

    def took(self, hold):
        self.holds.append(hold)

    async def forget(self, client):
        pass

    async def post(self, client, text):
        self.posts += 1
        return Posted.DELIVERED

    async def delete(self, client):
        return True

    def reset(self):
        self.meter.reset()
        self.posts = 0

    async def append(self, key="", count=1):
        done = [asyncio.get_running_loop().create_future() for _ in range(count)]
        for future in done:
            draft = Draft(TEXT, idempotency_key=key)
            self.store.append(NEWS, draft, KEPT, future.set_result)
        await asyncio.gather(*done)

    async def publish(self, **more):
        """Append, and deliver what was taken."""
        await self.append(**more)
        while self.holds:
            await self.rounds.deliver(self.holds.pop())

    async def subscribe(self, name, command=1, *, pieces=False):
        client, rows = ClientId(name), self.store.subscribers
        row = SubscriberRow(client, UserId("u"), RawJson("{}"), command=command)
        assert await rows.claim(NEWS, row, "{}") is Claim.MINE
        page = await self.store.read_fresh(NEWS, KEPT, 0, 0)
        if pieces:
            assert await rows.begin_pieces(NEWS, client, command, 0)
        assert await rows.activate(NEWS, client, command, page.top)

    def within(self, name):
        """Assert that what was measured is the row of this name, exactly."""
        written, read, posts, cost = budget()[name]
        assert (self.meter.written, self.meter.read, self.posts) == (
            written,
            read,
            posts,
        ), name
        dollars = written * WRITE + read * READ + posts * POST
        assert abs(cost - dollars) < 0.0051, (name, dollars)
        self.reset()


@pytest.fixture
async def bench(ministack):
    clock = StoreClock(VirtualClock())
    meter = UnitCounter()
    settings = ministack.settings(leases=True, timeout=4.9)
    maker = TableStore(settings, clock)
    await maker.start(lambda committed: None)
    await maker.close()
    store = DynamodbStore(settings, StoreSettings(), clock, connect=meter.connect)
    await store.start(lambda committed: None)
    bench = Bench(store, meter, clock)
    await bench.append()
    await bench.rounds.deliver(bench.holds.pop())
    bench.reset()
    yield bench
    await store.close()


async def test_publications(bench):
    await bench.publish()
    bench.within("publish to a quiet channel without subscribers")
    await bench.subscribe("a")
    bench.within("subscribe")
    await bench.publish()
    bench.within("publish to a quiet channel, one subscriber")
    for number in range(9):
        await bench.subscribe(f"b{number}")
    bench.reset()
    await bench.publish()
    bench.within("publish to a quiet channel, ten subscribers")
    await bench.publish(key="k")
    bench.within("the same with an idempotency key")
    await bench.append()
    bench.reset()
    await bench.append()
    bench.within("publish while the lease is held")


async def test_handed_over(bench):
    await bench.subscribe("a")
    bench.hands_over = True
    bench.reset()
    await bench.append()
    hold = await bench.rounds.claim(bench.holds.pop())
    await bench.rounds.deliver(hold)
    bench.within("publish, handed over to another invocation, one subscriber")


async def test_subscriptions(bench):
    await bench.subscribe("a", pieces=True)
    bench.within("subscribe, recovery in pieces")
    await bench.store.subscribers.leave(NEWS, ClientId("a"), 2)
    bench.within("unsubscribe")
    await bench.store.subscribers.remove(NEWS, ClientId("a"))
    bench.within("a row of a connection that is closed")


async def test_a_connection(bench):
    sessions = bench.sessions
    client = ClientId("a")
    await sessions.arrive(client, "{}")
    await sessions.arrived(client)
    terms = Terms(UserId("u"), "the id of a token", 1_700_000_000.0, 1_700_000_600_000)
    assert await sessions.admit(client, "192.0.2.1", terms) == []
    assert await sessions.open(client, "{}")
    bench.within("connect")
    assert await sessions.load(client)
    bench.within("a frame of a client, before what it asks for")
    assert await sessions.end(client)
    bench.within("the end of a connection")


async def test_the_watchdog(bench):
    assert await bench.rounds.watch(NEWS) is None
    bench.within("a look of the watchdog at a channel")


def test_every_row_is_measured():
    measured = set(re.findall(r"within\(\s*\"([^\"]+)\"", Path(__file__).read_text()))
    assert measured == budget().keys()

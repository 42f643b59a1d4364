"""Capacity units of each operation: at or under the budget in docs/deployment.md.

Transactions are measured on ministack, which charges for them as the service does;
operations on single items on dynalite, whose arithmetic of sizes is the service's. The
items that those need, and that only transactions write, are copied.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from functools import partial
from pathlib import Path
from typing import get_args

import pytest

from service.core.cluster import Changes, Notice, PresenceRow
from service.core.model import Channel, Draft, RawJson, UserId
from service.core.ports import History
from service.settings import StoreSettings
from service.stores import dynamodb
from service.stores.dynamodb import broker_outages
from service.stores.dynamodb.broker_outages import BrokerOutages
from service.stores.dynamodb.client import Client, Operation
from service.stores.dynamodb.registry.cluster import DynamodbCluster
from service.stores.dynamodb.registry.connections import AdmissionLimits, Connections
from service.stores.dynamodb.registry.counter import ConnectionCounter
from service.stores.dynamodb.registry.maintenance import (
    HEARTBEATS,
    REAP_EVERY,
    Maintenance,
)
from service.stores.dynamodb.registry.nodes import Nodes
from service.stores.dynamodb.registry.presence import Presence
from service.stores.dynamodb.registry.records import decode_connection
from service.stores.dynamodb.state import DynamodbState
from service.stores.dynamodb.store import DynamodbStore
from tests.stores.dynamodb.opening import make_table
from tests.stores.dynamodb.registry.fleet import Fleet, admit
from tests.stores.dynamodb.support import StoreClock, made
from tests.stores.dynamodb.units import UnitCounter

DOC = Path(__file__).parents[3] / "docs" / "deployment.md"
ROW = re.compile(r"^\| ([^|]+?) \| ([\d.]+) \| ([\d.]+) \| \$([\d.]+) \|$", re.M)
WRITE, READ = 0.625, 0.125  # dollars per million units, on demand
CHAT = History(100, 3600.0)


def budget():
    section = DOC.read_text().split("\n## Capacity\n")[1].split("\n## ")[0]
    return {
        name: (float(written), float(read), float(cost))
        for name, written, read, cost in ROW.findall(section)
    }


BUDGET = budget()
_rng = random.Random(1)
WORDS = [
    "".join(_rng.choices("etaoinshrdlucmfwyp", k=_rng.randint(2, 9)))
    for _ in range(500)
]


def within(name, meter, times=1.0):
    """Assert that what was measured, so many times, is within the row of this name."""
    written, read, _ = BUDGET[name]
    assert meter.written * times <= written, (name, meter.written * times)
    assert meter.read * times <= read, (name, meter.read * times)
    # A budget nobody comes near to would not be one.
    assert meter.written * times >= written * 0.8, (name, meter.written * times)
    assert meter.read * times >= read * 0.8, (name, meter.read * times)
    meter.reset()


@pytest.fixture
async def fleet(ministack, store_clock):
    fleet = await Fleet(ministack.settings(), store_clock).create()
    yield fleet
    await fleet.close()


@pytest.fixture
async def plain(dynalite, store_clock):
    """Return a fleet on dynalite, for what needs no transactions."""
    fleet = Fleet(dynalite.settings(), store_clock)
    async with made(fleet.settings, store_clock) as client:
        await make_table(client, fleet.settings)
    yield fleet
    await fleet.close()


@pytest.fixture
async def open_store(store_clock):
    opened = []

    async def open_store(fleet, meter, clock=store_clock, hearer=None):
        store = DynamodbStore(
            fleet.settings, StoreSettings(), clock, connect=meter.connect
        )
        await store.start(lambda committed: None, hearer)
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        await store.close()


def message(rng):
    """Return 300 bytes of JSON, with words of a language that has five hundred."""
    words = " ".join(rng.choice(WORDS) for _ in range(60))
    head = json.dumps({"id": f"{rng.getrandbits(128):032x}", "text": ""})[:-2]
    return RawJson(head + words[: 298 - len(head)] + '"}')


async def publish(store, channel, count, key=""):
    done = [asyncio.get_running_loop().create_future() for _ in range(count)]
    rng = random.Random(7)
    for future in done:
        draft = Draft(message(rng), idempotency_key=key)
        store.append(Channel(channel), draft, CHAT, future.set_result)
    return await asyncio.gather(*done)


async def test_connections(fleet, clock):
    meter = UnitCounter()
    one = await fleet.process(meter)
    meter.reset()
    await admit(one, "u", "a")
    within("connect", meter)
    await one.leave("a")
    within("disconnect", meter)
    for client in ("a", "b", "c"):
        await admit(one, "u", client)
        clock.advance(1)
    meter.reset()
    await admit(one, "u", "d")
    within("connect that takes the place of another", meter)
    await one.evictions()
    await one.leave("a")
    meter.reset()


@pytest.fixture
async def metered(plain, store_clock):
    """Return a client of a table on dynalite, and what it consumes."""
    meter = UnitCounter()
    client = Client(plain.settings, store_clock, connect=meter.connect)
    await client.start()
    yield client, meter
    await client.close()


async def test_subscriptions_and_activity(metered, fleet, plain, store_clock):
    one = await fleet.process()
    await admit(one, "u", "a")
    (item,) = fleet.contents().records.values()
    record = decode_connection(item)
    copy(fleet, plain)
    client, meter = metered
    presence = Presence(client, store_clock, 86400.0)
    row = PresenceRow(
        Channel("news"), record.client, UserId("u"), record.node, RawJson("{}"), 1
    )
    await presence.enter([row])
    within("subscribe, in a namespace with presence", meter)
    await presence.leave(row.node, [row.key])
    within("unsubscribe, in a namespace with presence", meter)
    connections = Connections(
        client,
        ConnectionCounter(client, 100, store_clock, random.Random(1)),
        AdmissionLimits(3, 100, "evict_lru", 86400.0),
        store_clock,
        random.Random(1),
        timeout=4.0,
        active=lambda client: None,
        is_dead=lambda node: False,
    )
    assert await connections.touch(record, record.active + 1)
    within("activity of a client, at most once a minute", meter)
    await admit(one, "u", "b")
    copy(fleet, plain)
    assert await connections.touch(record, record.active + 1)
    within("activity of one whose user has others", meter)


def copy(source, target):
    """Put everything into the other table, as if it had been written there."""
    about = target.boto.describe_table(TableName=target.settings.table)
    for item in source.items():
        if "origin" in item:  # the id of the table that it was written to
            item["origin"] = {"S": about["Table"]["TableId"]}
        target.write("put_item", Item=item)


async def test_publications(fleet, open_store):
    meter = UnitCounter()
    store = await open_store(fleet, meter)
    await publish(store, "c", 1)
    meter.reset()
    await publish(store, "c", 1)
    within("publish, 300 bytes", meter)
    await publish(store, "c", 1, key="k")
    within("publish, 300 bytes, with an idempotency key", meter)
    await publish(store, "c", 32)
    within("publish, each of 32 at once", meter, 1 / 32)


async def test_reading(fleet, plain, open_store):
    store = await open_store(fleet, UnitCounter())
    for _ in range(5):
        await publish(store, "c", 10)
    copy(fleet, plain)
    meter = UnitCounter()
    store = await open_store(plain, meter)
    meter.reset()
    page = await store.read(Channel("c"), CHAT, 0, -1)
    assert len(page.publications) == 50
    within("recover 50 publications of 300 bytes", meter)


async def test_a_channel_that_is_idle(fleet, plain, open_store, clock):
    store = await open_store(fleet, UnitCounter())
    await publish(store, "c", 1)
    copy(fleet, plain)
    meter, later = UnitCounter(), StoreClock(clock)
    store = await open_store(plain, meter, later)
    await store.read(Channel("c"), CHAT, None, 0)
    meter.reset()
    # As often as a process looks whether it has missed something.
    for _ in range(90):
        later.ahead += 40.0
        await store.read(Channel("c"), CHAT, None, 0)
    within("a channel with subscribers, for each process and hour", meter)


class Hearer:
    """Leaves a channel when it has heard of its top."""

    def __init__(self):
        self.heard = asyncio.Event()
        self.store = None

    def told(self, batch):
        raise AssertionError("nobody tells")

    def moved(self, channel, top):
        self.store.unfollow(channel)
        self.heard.set()


@pytest.mark.parametrize("covered", [False, True])
async def test_hearing_what_others_publish(fleet, plain, open_store, covered):
    await publish(await open_store(fleet, UnitCounter()), "c", 1)
    copy(fleet, plain)
    meter, hearer = UnitCounter(), Hearer()
    hearer.store = store = await open_store(plain, meter, hearer=hearer)
    meter.reset()
    store.follow(Channel("c"), CHAT)
    if covered:
        store.confirmed(Channel("c"))
    async with asyncio.timeout(60):
        await hearer.heard.wait()
    if covered:
        within("the first subscriber of a channel, with a broker", meter)
    else:
        within("a poll of a channel with subscribers, without a broker", meter)


class WholeBroker:
    """A broker that carries hints."""

    def fault(self):
        return None


async def test_a_process_that_has_a_broker(plain, open_store, store_clock):
    meter = UnitCounter()
    store = await open_store(plain, meter)
    outages = BrokerOutages(WholeBroker(), store.state, HeadsAlone(), store_clock)
    meter.reset()
    await outages.look()
    hourly = 3600 / broker_outages.PERIOD
    within("a process with a broker, besides, for each hour", meter, hourly)


class HeadsAlone:
    """Heads that nobody polls."""

    def poll_covered(self, why, holds):
        assert not holds


async def test_a_process_that_is_idle(metered, store_clock):
    client, meter = metered
    nodes = Nodes(client, store_clock, 40.0)
    await nodes.register()
    presence = Presence(client, store_clock, 86400.0)
    cluster = DynamodbCluster(client, nodes, presence, store_clock)
    hourly = {
        partial(nodes.notices, nodes.name): 3600 / Maintenance.period,
        cluster.nodes: 3600 / Maintenance.period,
        cluster.notices: 3600 / Maintenance.period,
        nodes.renew: 3600 / (40.0 / HEARTBEATS),
        nodes.read: 3600 / REAP_EVERY,
    }
    total = UnitCounter()
    for work, times in hourly.items():
        meter.reset()
        await work()
        total.written += meter.written * times
        total.read += meter.read * times
    within("a process, for each hour", total)


async def test_what_processes_tell_each_other(metered, store_clock):
    client, meter = metered
    clusters = []
    for _ in range(2):
        nodes = Nodes(client, store_clock, 40.0)
        presence = Presence(client, store_clock, 86400.0)
        await nodes.register()
        clusters.append(DynamodbCluster(client, nodes, presence, store_clock))
    one, two = clusters
    meter.reset()
    await one.tell([Changes(number, (Channel("n" * 20),) * 5) for number in range(9)])
    within("changes of presence in a process, four times a second at most", meter)
    await one.send(Notice("1", "disconnect", "{}" * 100))
    await two.settle([notice.id for notice in await two.notices()])
    within("an action of the server API, for each other process", meter)


async def test_shared_values(metered, store_clock):
    client, meter = metered
    state = DynamodbState(client, store_clock)
    await state.put("ticket", "k" * 43, "v" * 300, 60.0)
    within("a ticket made", meter)
    assert await state.take("ticket", "k" * 43) == "v" * 300
    within("a ticket taken", meter)


def test_the_table_says_what_it_costs():
    for name, (written, read, cost) in BUDGET.items():
        assert abs(cost - (written * WRITE + read * READ)) < 0.0051, name


def test_every_row_of_the_table_is_measured():
    measured = re.findall(r"within\(\s*\"([^\"]+)\"", Path(__file__).read_text())
    assert len(BUDGET) == 20
    assert sorted(measured) == sorted(BUDGET)


def test_the_policy_allows_what_is_called_and_no_more():
    policy = re.search(r"```json\n(.*?)```", DOC.read_text(), re.S)
    (statement,) = json.loads(policy[1])["Statement"]
    sources = Path(dynamodb.__file__).parent.rglob("*.py")
    called = set()
    for source in sources:
        if source.name not in ("table.py", "client.py"):  # administration; a list
            called |= set(re.findall(r"\"([a-z_]+)\"", source.read_text()))
    operations = called & set(get_args(Operation))
    operations |= {"describe_table"}  # at the start
    operations |= {"condition_check_item"}  # a part of a transaction
    assert "transact_write_items" in operations
    operations -= {"transact_write_items"}  # is made of Put, Update and Delete
    names = {"".join(map(str.capitalize, name.split("_"))) for name in operations}
    assert {action.removeprefix("dynamodb:") for action in statement["Action"]} == names

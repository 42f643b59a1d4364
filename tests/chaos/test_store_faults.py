"""Faults of the store under traffic: locked, full, slow, unwritable, gone and back.

Publishers over HTTP repeat each publish under its key until it is acknowledged, SDK
clients publish without a key and do not repeat, and SDK clients listen. In the end what
is stored, what was acknowledged and what each listener was given are the same lists:
nothing acknowledged is lost, nothing is doubled, and no repeat is dropped.

CHAOS_SEED in the environment replays a run's payloads and pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psutil
import pytest

from service.stores.dynamodb.table import definition
from tests.chaos.load import Load, compare
from tests.faultproxy import FaultProxy, Profile
from tests.harness.api import Api
from tests.harness.emulators import Emulator
from tests.harness.metrics import scrape
from tests.harness.sdk import SdkClient, SdkError
from tests.harness.server import Server
from tests.stores.dynamodb.support import Faults

SDKS = ("js-5.8.0", "python-0.7.0")
LISTENERS_PER_SDK = 2
PUBLISHERS = 4
RATE_EACH = 20  # started per second

KEYED, UNKEYED = "keyed", "unkeyed"
OPTIONS = {
    "history_size": 20_000,
    "history_ttl": 86_400,
    "force_recovery": True,
    "allow_subscribe_for_client": True,
    "allow_publish_for_client": True,
}
SETTINGS = {
    "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(OPTIONS),
    "STEADWIRE_CLIENT_RECOVERY_LIMIT": "10000",
    "STEADWIRE_CLIENT_POSITION_CHECK": "1",
}

Fault = Callable[[Server, random.Random], Awaitable[None]]


@contextlib.asynccontextmanager
async def write_lock(server: Server) -> AsyncIterator[None]:
    """Hold the write lock of the server's database."""
    path = server.settings["STEADWIRE_STORE_PATH"]
    thief = sqlite3.connect(
        path, isolation_level=None, timeout=10.0, check_same_thread=False
    )
    with contextlib.closing(thief):
        await asyncio.to_thread(thief.execute, "BEGIN IMMEDIATE")
        yield
        thief.execute("ROLLBACK")


# The times are input of the test, not waits for something.


async def locked(server: Server, rng: random.Random) -> None:
    async with write_lock(server):
        await asyncio.sleep(5.0)


async def locked_again_and_again(server: Server, rng: random.Random) -> None:
    """Some locks are waited for, the others open the breaker."""
    for turn in range(8):
        longest = 2.0 if turn % 2 else 0.3
        async with write_lock(server):
            await asyncio.sleep(longest * rng.uniform(0.75, 1.0))
        await asyncio.sleep(rng.uniform(0.0, 0.5))


async def slow(server: Server, rng: random.Random) -> None:
    """Each commit takes some tenths of a second."""
    for _ in range(20):
        async with write_lock(server):
            await asyncio.sleep(rng.uniform(0.1, 0.3))


async def full(server: Server, rng: random.Random) -> None:
    """The log may grow by 20 KB, and then no more."""
    log = os.stat(server.settings["STEADWIRE_STORE_PATH"] + "-wal").st_size
    await limited(server, log + 20_000)


async def unwritable(server: Server, rng: random.Random) -> None:
    """No write to any file succeeds."""
    await limited(server, 0)


async def limited(server: Server, size: int) -> None:
    _, hard = server.process.rlimit(psutil.RLIMIT_FSIZE)
    server.process.rlimit(psutil.RLIMIT_FSIZE, (size, hard))
    await asyncio.sleep(5.0)
    server.process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))


# What each fault must have done, or the test shows nothing.
OPENS = {locked, locked_again_and_again, full, unwritable}
FAULTS = [locked, locked_again_and_again, slow, full, unwritable]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.requirement("R23", "L12", "L28")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_fault_of_the_file_under_traffic(
    make_server: Callable[..., Server],
    start_host: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    fault: Fault,
) -> None:
    settings = {**SETTINGS, "STEADWIRE_STORE_LOCK_TIMEOUT": "0.2"}
    server = await make_server(settings).start()
    now = await campaign(server, start_host, capsys, fault)
    if fault in OPENS:
        assert now["breaker_openings_total"] >= 1
    assert now["breaker_recoveries_total"] == now["breaker_openings_total"]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.requirement("R23", "L12", "L28")
@pytest.mark.parametrize("what", ["gone", "slow"])
async def test_a_fault_of_the_table_under_traffic(
    ministack: Emulator,
    make_server: Callable[..., Server],
    start_host: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    settings = ministack.settings()
    boto = Faults().connect(settings)
    boto.create_table(**definition(settings))
    boto.close()
    async with FaultProxy(ministack.port, seed=1) as proxy:

        async def fault(server: Server, rng: random.Random) -> None:
            if what == "slow":
                proxy.impair(Profile(delay=0.2, jitter=0.1))
                await asyncio.sleep(5.0)
                proxy.impair(Profile())
            else:
                proxy.black_hole()
                await asyncio.sleep(5.0)
                proxy.reset()  # what was swallowed never comes
                proxy.resume()

        server = await make_server(
            {
                **SETTINGS,
                **ministack.credentials,
                "STEADWIRE_STORE_BACKEND": "dynamodb",
                "STEADWIRE_DYNAMODB_TABLE": settings.table,
                "STEADWIRE_DYNAMODB_REGION": settings.region,
                "STEADWIRE_DYNAMODB_ENDPOINT": f"http://127.0.0.1:{proxy.port}",
            }
        ).start()
        now = await campaign(server, start_host, capsys, fault)
        if what == "gone":
            assert now["breaker_openings_total"] >= 1
        assert now["breaker_recoveries_total"] == now["breaker_openings_total"]
        server.close()


class SdkPublisher:
    """Publishes over the WebSocket, each number once, whatever the answer is.

    Attributes:
        acknowledged: Numbers that were.
        refused: Numbers that the server refused: nothing was stored, or nobody knows.
        unknown: Numbers without an answer in time.
    """

    def __init__(self, client: SdkClient) -> None:
        self._client = client
        self._stopping = False
        self.acknowledged: list[int] = []
        self.refused: list[int] = []
        self.unknown: list[int] = []

    async def run(self) -> None:
        for n in itertools.count():
            if self._stopping:
                return
            try:
                await self._client.publish(UNKEYED, n)
                self.acknowledged.append(n)
            except SdkError as error:
                (self.refused if error.code == 100 else self.unknown).append(n)
            await asyncio.sleep(0.05)  # the pace

    def stop(self) -> None:
        self._stopping = True


async def campaign(
    server: Server,
    start_host: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    fault: Fault,
) -> Any:
    """Let a fault happen under traffic; compare everything; return the metrics."""
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))
    summary: dict[str, Any] = {"seed": seed}
    try:
        async with server.api() as api:
            await traffic(server, api, start_host, fault, summary)
            return await scrape(api)
    finally:
        with capsys.disabled():
            lines = (f"  {name}: {value}" for name, value in summary.items())
            print("\nfault of the store:", *lines, sep="\n")


async def traffic(
    server: Server,
    api: Api,
    start_host: Callable[..., Any],
    fault: Fault,
    summary: dict[str, Any],
) -> None:
    listeners: list[SdkClient] = []
    for sdk in SDKS:
        host = await start_host(sdk, own_process=True)
        for _ in range(LISTENERS_PER_SDK):
            listeners.append(await SdkClient.create(host, server.url))
    for client in listeners:
        await client.connect()
        for channel in (KEYED, UNKEYED):
            assert (await client.subscribe(channel))["offset"] == 0
    writer = await SdkClient.create(listeners[0].host, server.url)
    await writer.connect()
    load = Load(api, KEYED, summary["seed"], rate=RATE_EACH)
    sdk_publisher = SdkPublisher(writer)
    async with asyncio.timeout(90.0), asyncio.TaskGroup() as group:
        for publisher in range(PUBLISHERS):
            group.create_task(load.run(publisher))
        group.create_task(sdk_publisher.run())
        await grown(load, api, 100)
        await fault(server, random.Random(summary["seed"]))
        await grown(load, api, 100)
        await grown_unkeyed(sdk_publisher, 5)
        load.stop()
        sdk_publisher.stop()

    total = len(load.acknowledged)
    summary |= {
        "acknowledged over HTTP": total,
        "told to try again": load.temporary,
        "acknowledged to the SDK": len(sdk_publisher.acknowledged),
        "refused to the SDK": len(sdk_publisher.refused),
        "without an answer": len(sdk_publisher.unknown),
    }
    # With keys: exactly what was acknowledged, once each, without a hole.
    assert sorted(load.acknowledged) == list(range(1, total + 1))
    expected = [(n, load.acknowledged[n]) for n in range(1, total + 1)]
    names = [(data["publisher"], data["n"]) for _, data in expected]
    assert len(set(names)) == total
    for publisher in range(PUBLISHERS):
        numbers = [n for who, n in names if who == publisher]
        assert numbers == list(range(len(numbers)))  # no repeat was dropped
    compare("history", await api.whole_history(KEYED), expected)

    # Without keys: all that was acknowledged, nothing twice, nothing else but what
    # nobody knows the outcome of.
    kept = await api.whole_history(UNKEYED)
    others = [(each["offset"], each["data"]) for each in kept]
    assert [offset for offset, _ in others] == list(range(1, len(others) + 1))
    found = [n for _, n in others]
    assert len(set(found)) == len(found)
    assert set(sdk_publisher.acknowledged) <= set(found)
    doubtful = set(sdk_publisher.refused) | set(sdk_publisher.unknown)
    assert set(found) - set(sdk_publisher.acknowledged) <= doubtful
    assert found == sorted(found)

    for client in listeners:
        name = f"{client.host.name} {client.name}"
        await client.until(
            lambda client=client: (
                len(client.publications(KEYED)) >= total  # type: ignore[misc]
                and len(client.publications(UNKEYED)) >= len(others)
            ),
            "everything",
            within=30.0,
        )
        compare(name, client.publications(KEYED), expected)
        compare(name, client.publications(UNKEYED), others)
        assert client.events["disconnected"] == []
        assert client.events["unsubscribed"] == []


async def grown(load: Load, api: Api, count: int) -> None:
    """Wait until so many more were acknowledged."""
    until = len(load.acknowledged) + count
    while len(load.acknowledged) < until:
        api.written.clear()
        await api.written.wait()


async def grown_unkeyed(publisher: SdkPublisher, count: int) -> None:
    until = len(publisher.acknowledged) + count
    while len(publisher.acknowledged) < until:
        await asyncio.sleep(0.05)  # between two looks

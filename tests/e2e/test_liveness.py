"""Connections that fall silent, grow old, are lost or evicted: on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.faultproxy import FaultProxy
from tests.harness.fixtures import server_with
from tests.harness.metrics import scrape
from tests.harness.raw import CLOSE, RawClient
from tests.harness.server import Server
from tests.harness.tokens import connection, settings

PING, TIMEOUT = 0.5, 2.0  # s

SHORT = settings(
    STEADWIRE_CLIENT_PING_INTERVAL=str(PING),
    STEADWIRE_CLIENT_PONG_TIMEOUT="0.2",
    STEADWIRE_CLIENT_HEARTBEAT_TIMEOUT=str(TIMEOUT),
    STEADWIRE_CONNECTIONS_PARKED="3",
    STEADWIRE_CONNECTIONS_SWEEP_INTERVAL="0.2",
    STEADWIRE_CHANNELS_WITHOUT_NAMESPACE=json.dumps(
        {
            "allow_subscribe_for_client": True,
            "allow_publish_for_client": True,
            "allow_presence_for_client": True,
            "presence": True,
            "join_leave": True,
            "history_size": 100,
            "history_ttl": 600,
            "force_recovery": True,
        }
    ),
)

MakeServer = Callable[..., Server]


running = server_with(SHORT)


@pytest.fixture
async def server(running: Server) -> Server:
    """Return the server once nobody of the test before is left."""
    async with asyncio.timeout(10), running.api() as api:
        while await clients(running) or (await api.call("channels", {}))["channels"]:
            await asyncio.sleep(0.05)
        while (await api.call("presence", {"channel": "ch"}))["presence"]:
            await asyncio.sleep(0.05)
    return running


async def enter(port: int, user: str, channel: str = "") -> RawClient:
    client = await RawClient.open(port)
    await client.connect(token=connection(user))
    if channel:
        await client.subscribe(channel, join_leave=True)
    return client


async def clients(server: Server) -> int:
    async with server.api() as api:
        [node] = (await api.call("info", {}))["nodes"]
        count: int = node["num_clients"]
        return count


class Reader:
    """Reads and pongs for a client, and keeps what is pushed."""

    def __init__(self, client: RawClient) -> None:
        self.pushes: list[dict[str, Any]] = []
        self._client = client
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            self.pushes.append(await self._client.push(600.0))

    async def until(self, count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(10):
            while len(self.pushes) < count:
                await asyncio.sleep(0.01)
        return self.pushes

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def readers() -> AsyncIterator[Callable[[RawClient], Reader]]:
    made: list[Reader] = []

    def read(client: RawClient) -> Reader:
        made.append(Reader(client))
        return made[-1]

    yield read
    for reader in made:
        await reader.stop()


@pytest.mark.requirement("R26", "B7", "B83")
async def test_a_black_hole_is_noticed(
    server: Server, readers: Callable[[RawClient], Reader]
) -> None:
    loop = asyncio.get_running_loop()
    witness = readers(await enter(server.port, "bob"))
    async with FaultProxy(server.port, seed=1) as proxy:
        victim = readers(await enter(proxy.port, "ann"))
        await asyncio.sleep(2 * TIMEOUT)  # both pong, so nothing happens
        assert await clients(server) == 2
        proxy.black_hole()
        started = loop.time()
        async with asyncio.timeout(20 * TIMEOUT):
            while await clients(server) == 2:
                await asyncio.sleep(0.02)
        # Its last sign of life was up to one interval before.
        assert loop.time() - started >= TIMEOUT - PING - 0.1
        assert await clients(server) == 1
    await victim.stop()
    assert witness.pushes == []


@pytest.mark.requirement("R5")
async def test_a_lost_connection_that_comes_back_never_left(
    server: Server, readers: Callable[[RawClient], Reader]
) -> None:
    bob = readers(await enter(server.port, "bob", "ch"))
    [own] = await bob.until(1)
    assert own["join"]["info"]["user"] == "bob"
    async with FaultProxy(server.port, seed=1) as proxy, server.api() as api:
        await enter(proxy.port, "ann", "ch")
        before = (await bob.until(2))[1]["join"]["info"]["client"]
        proxy.reset()
        async with asyncio.timeout(10):
            while await clients(server) == 2:
                await asyncio.sleep(0.02)
        shown = (await api.call("presence", {"channel": "ch"}))["presence"]
        assert sorted(one["user"] for one in shown.values()) == ["ann", "bob"]
        assert len(bob.pushes) == 2
        readers(await enter(proxy.port, "ann", "ch"))
        join, leave = (await bob.until(4))[2:]
        assert join["join"]["info"]["user"] == "ann"
        assert join["join"]["info"]["client"] != before
        assert leave["leave"]["info"]["client"] == before
        shown = (await api.call("presence", {"channel": "ch"}))["presence"]
        assert sorted(one["user"] for one in shown.values()) == ["ann", "bob"]


async def test_a_lost_connection_that_stays_away_leaves(
    server: Server, readers: Callable[[RawClient], Reader]
) -> None:
    bob = readers(await enter(server.port, "bob", "ch"))
    (await enter(server.port, "ann", "ch")).reset()
    pushes = await bob.until(3)
    assert pushes[2]["leave"]["info"] == pushes[1]["join"]["info"]


async def test_who_says_goodbye_leaves_at_once(
    server: Server, readers: Callable[[RawClient], Reader]
) -> None:
    bob = readers(await enter(server.port, "bob", "ch"))
    ann = await enter(server.port, "ann", "ch")
    await bob.until(2)
    async with server.api() as api:
        await ann.send_frame(CLOSE, (1000).to_bytes(2, "big"))
        async with asyncio.timeout(2.5):  # the grace period is 3 s
            while len(bob.pushes) < 3:
                await asyncio.sleep(0.01)
        shown = (await api.call("presence", {"channel": "ch"}))["presence"]
    assert [one["user"] for one in shown.values()] == ["bob"]


@pytest.mark.requirement("R4")
@pytest.mark.parametrize("make_client", ["js-5.8.0", "python-0.7.0"], indirect=True)
async def test_an_evicted_sdk_does_not_come_back_to_fight(
    server: Server, make_client: Any, readers: Callable[[RawClient], Reader]
) -> None:
    client = await make_client(server.url, token=connection("ann"))
    await client.connect()
    others = [readers(await enter(server.port, "ann")) for _ in range(3)]
    [ended] = await client.seen("disconnected", 1)
    assert ended["code"] == 3504
    await asyncio.sleep(1.0)  # it would be back by now
    assert await clients(server) == 3
    assert len(client.events["connecting"]) == 1
    assert all(other.pushes == [] for other in others)


@pytest.mark.requirement("R9")
@pytest.mark.parametrize("make_client", ["js-5.8.0", "python-0.7.0"], indirect=True)
async def test_an_old_connection_starts_afresh_and_misses_nothing(
    make_server: MakeServer, make_client: Any, channel: str
) -> None:
    server = await make_server({**SHORT, "STEADWIRE_CLIENT_MAX_AGE": "1"}).start()
    client = await make_client(server.url, token=connection("ann"))
    await client.connect()
    await client.subscribe(channel)
    sent = 0
    async with server.api() as api:
        while len(client.events["connecting"]) < 3:
            sent += 1
            await api.publish(channel, {"n": sent})
            await asyncio.sleep(0.02)
    await client.seen("publication", sent)
    assert [one["offset"] for one in client.publications(channel)] == list(
        range(1, sent + 1)
    )
    assert {one["code"] for one in client.events["connecting"][1:]} == {3011}


@pytest.mark.requirement("R10", "B8", "B12")
@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_thousand_cycles_leave_nothing(make_server: MakeServer) -> None:
    # R10, after 7,500 to warm up: arenas, caches and thread stacks are there by then.
    server = await make_server(SHORT).start()

    async def cycle(mine: int) -> None:
        client = await RawClient.open(server.port, within=60.0)
        await client.connect(token=connection(f"user{mine % 50}"))
        await client.subscribe(f"ch{mine % 20}")
        await client.publish(f"ch{mine % 20}", {"n": mine})
        if mine % 3:
            client.reset()
        else:
            await client.send_frame(CLOSE, (1000).to_bytes(2, "big"))
            assert (await client.closed()).code == 1000
            client.tcp.close()

    async def cycles(count: int) -> None:
        for first in range(0, count, 10):
            await asyncio.gather(*(cycle(first + n) for n in range(10)))

    async def settled() -> tuple[dict[str, Any], float]:
        async with asyncio.timeout(60), server.api() as api:
            while await clients(server) or server.connections() > 1:
                await asyncio.sleep(0.1)
            await asyncio.sleep(11)  # until the grace periods are over
            channels: dict[str, Any] = await api.call("channels", {})
            return channels, (await scrape(api))["tasks"]

    await cycles(7500)
    channels, tasks = await settled()
    assert channels == {"channels": {}}
    before, descriptors = server.memory(), server.descriptors()
    await cycles(10_000)
    assert await settled() == ({"channels": {}}, tasks)
    grown = server.memory() - before
    assert grown < 5 * 1024 * 1024, f"{grown / 2**20:.1f} MiB"
    assert server.descriptors() <= descriptors + 1

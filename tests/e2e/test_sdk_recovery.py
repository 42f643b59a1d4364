"""Recovery by an official SDK that loses its connection or its server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.faultproxy import FaultProxy
from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.server import Server

MakeClient = Callable[..., Any]


ended = server_with()

KEPT = {"history_size": 5, "history_ttl": 300, "force_recovery": True}
forgetful = server_with({"STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(KEPT)})

# It takes a silent connection for dead after 2.5 s.
impatient = server_with(
    {
        "STEADWIRE_CLIENT_PING_INTERVAL": "1",
        "STEADWIRE_CLIENT_PONG_TIMEOUT": "0.5",
        "STEADWIRE_CLIENT_HEARTBEAT_TIMEOUT": "2.5",
    }
)


@pytest.fixture
async def restarted(ended: Server) -> Server:
    """Return a server to end and to start again; a failed test may have left it."""
    return ended if ended.running else await ended.start()


def expected(count: int) -> list[dict[str, Any]]:
    return [
        {"offset": n, "data": {"n": n}, "tags": {"n": str(n)}}
        for n in range(1, count + 1)
    ]


def through(proxy: FaultProxy, server: Server) -> str:
    """Return a server's address for SDKs, of the proxy's port."""
    return re.sub(r":\d+/", f":{proxy.port}/", server.url)


class Publishing:
    """Publishes 1, 2, 3, … one after the other.

    Attributes:
        count: Acknowledged so far.
    """

    def __init__(self, api: Api, channel: str) -> None:
        self._api = api
        self._channel = channel
        self._stopping = False
        self.count = 0

    async def one(self) -> None:
        n = self.count + 1
        offset = await self._api.publish(
            self._channel, {"n": n}, tags={"n": str(n)}, idempotency_key=f"key {n}"
        )
        assert offset == n
        self.count = n

    async def up_to(self, count: int) -> None:
        async with asyncio.timeout(10.0):
            while self.count < count:
                await self.one()

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Publish meanwhile, at most some 200 a second."""
        task = asyncio.create_task(self._forever())
        try:
            yield
        finally:
            # Not cancelled: the count must be exact.
            self._stopping = True
            await task

    async def _forever(self) -> None:
        while not self._stopping:
            await self.one()
            await asyncio.sleep(0.005)  # the pace, not a wait for something


@pytest.mark.requirement("B3", "B4", "B72")
async def test_cut_while_publications_go_on(
    server: Server, make_client: MakeClient, channel: str
) -> None:
    # Away for at least 0.3 s each time: some fifty publications to recover, fewer where
    # a store or the machine is slow.
    missed = 0
    client = await make_client(server.url, min_delay=0.3, max_delay=0.4)
    await client.connect()
    await client.subscribe(channel)
    async with server.api() as api:
        publishing = Publishing(api, channel)
        async with publishing.going_on():
            for round_ in range(1, 4):
                live = len(client.events["publication"]) + 10
                await client.seen("publication", live)
                await client.cut()
                connecting = await client.seen("connecting", round_ + 1)
                assert connecting[-1]["code"] == 1  # transport closed
                before = publishing.count
                await client.seen("subscribed", round_ + 1)
                missed += publishing.count - before
        total = publishing.count

    assert missed > 0
    await client.seen("publication", total)
    assert client.publications(channel) == expected(total)
    again = client.events["subscribed"][1:]
    flags = [(event["was_recovering"], event["recovered"]) for event in again]
    assert flags == [(True, True)] * 3
    assert client.events["disconnected"] == []


@pytest.mark.requirement("R43", "B69", "B76")
async def test_server_killed_and_restarted_on_its_store(
    restarted: Server, make_client: MakeClient, channel: str
) -> None:
    client = await make_client(restarted.url)
    await client.connect()
    await client.subscribe(channel)
    async with restarted.api() as api:
        publishing = Publishing(api, channel)
        for life in range(1, 4):
            await publishing.up_to(20 * life - 10)
            restarted.kill9()
            await client.seen("connecting", life + 1)
            await restarted.start()
            api.drop_connections()
            await publishing.up_to(20 * life)
            await client.seen("subscribed", life + 1)
        total = publishing.count
        stored = await api.whole_history(channel)

    await client.seen("publication", total)
    assert client.publications(channel) == expected(total)
    assert [publication["offset"] for publication in stored] == list(
        range(1, total + 1)
    )
    subscribed = client.events["subscribed"]
    assert len({event["epoch"] for event in subscribed}) == 1
    flags = [(event["was_recovering"], event["recovered"]) for event in subscribed[1:]]
    assert flags == [(True, True)] * 3


@pytest.mark.requirement("R49")
async def test_server_shut_down_and_restarted(
    restarted: Server, make_client: MakeClient, channel: str
) -> None:
    client = await make_client(restarted.url)
    await client.connect()
    await client.subscribe(channel)
    async with restarted.api() as api:
        publishing = Publishing(api, channel)
        await publishing.up_to(5)
        # Version 0.4.4 has no code for a close that comes in one read with a message.
        await client.seen("publication", 5)
        assert await restarted.terminate() == 0
        connecting = await client.seen("connecting", 2)
        assert connecting[1]["code"] == 3001
        assert connecting[1]["reason"] == "shutdown"
        await restarted.start()
        api.drop_connections()
        await publishing.up_to(10)
    await client.seen("publication", 10)
    assert client.publications(channel) == expected(10)
    (_, again) = client.events["subscribed"]
    assert again["was_recovering"] and again["recovered"]


@pytest.mark.requirement("R43", "B70")
async def test_more_missed_than_kept_is_told(
    forgetful: Server, make_client: MakeClient, channel: str
) -> None:
    client = await make_client(forgetful.url)
    await client.connect()
    await client.subscribe(channel)
    async with forgetful.api() as api:
        publishing = Publishing(api, channel)
        await publishing.one()
        await client.seen("publication", 1)
        await client.disconnect()
        await publishing.up_to(7)
        await client.connect()
        (_, again) = await client.seen("subscribed", 2)
        assert again["was_recovering"] and not again["recovered"]
        await publishing.one()
    await client.seen("publication", 2)
    assert client.offsets(channel) == [1, 8]


@pytest.mark.requirement("B66")
async def test_exactly_what_is_kept_is_recovered(
    forgetful: Server, make_client: MakeClient, channel: str
) -> None:
    client = await make_client(forgetful.url)
    await client.connect()
    await client.subscribe(channel)
    async with forgetful.api() as api:
        publishing = Publishing(api, channel)
        await publishing.one()
        await client.seen("publication", 1)
        await client.disconnect()
        await publishing.up_to(6)
        await client.connect()
        (_, again) = await client.seen("subscribed", 2)
        assert again["was_recovering"] and again["recovered"]
    await client.seen("publication", 6)
    assert client.publications(channel) == expected(6)


@pytest.mark.requirement("R22", "B54", "B71")
@pytest.mark.parametrize("fault", ["cut", "stall"])
async def test_bad_network_between_client_and_server(
    server: Server, make_client: MakeClient, channel: str, fault: str
) -> None:
    async with FaultProxy(server.socket_port, seed=20) as proxy, server.api() as api:
        url = through(proxy, server)
        client = await make_client(url)
        await client.connect()
        await client.subscribe(channel)
        publishing = Publishing(api, channel)
        for round_ in range(1, 4):
            if fault == "stall":
                proxy.stall()
            await publishing.up_to(30 * round_)
            if fault == "stall":
                proxy.resume()
            else:
                proxy.reset()
                await client.seen("subscribed", round_ + 1)
        await client.seen("publication", 90)
    assert client.publications(channel) == expected(90)
    again = client.events["subscribed"][1:]
    assert all(event["was_recovering"] and event["recovered"] for event in again)


@pytest.mark.requirement("R50", "B78")
@pytest.mark.parametrize(
    "make_client",
    [
        "js-5.8.0",
        "python-0.7.0",
        "js-5.5.3",
        # It waits ten seconds for an answer to its close frame before it goes on.
        pytest.param("python-0.4.4", marks=pytest.mark.slow),
    ],
    indirect=True,
)
async def test_dead_link_is_noticed_by_both_sides(
    impatient: Server, make_client: MakeClient, channel: str
) -> None:
    # A network that swallows everything, as when a laptop changes networks: no end of
    # the connection reaches anybody, only the pings are missing.
    async with FaultProxy(impatient.port, seed=1) as proxy, impatient.api() as api:
        url = through(proxy, impatient)
        client = await make_client(url, ping_delay=0.5)
        await client.connect()
        await client.subscribe(channel)
        publishing = Publishing(api, channel)
        await publishing.up_to(5)
        await client.seen("publication", 5)

        proxy.black_hole()
        await publishing.up_to(15)
        connecting = await client.seen("connecting", 2, within=20.0)
        assert connecting[1]["code"] == 2  # no ping
        proxy.resume()
        await client.seen("publication", 15)
    assert client.publications(channel) == expected(15)
    again = client.events["subscribed"][1:]
    assert again
    assert all(event["was_recovering"] and event["recovered"] for event in again)


@pytest.mark.requirement("B39", "B75")
async def test_recovery_larger_than_one_reply(
    server: Server, make_client: MakeClient, channel: str
) -> None:
    # 40 times 30 KB: the reply holds 256 KiB, the rest follows as pushes, and what
    # is published meanwhile comes after them.
    client = await make_client(server.url)
    await client.connect()
    await client.subscribe(channel)
    await client.disconnect()
    payloads = [{"n": n, "text": chr(64 + n % 26) * 30_000} for n in range(1, 51)]
    async with server.api() as api:
        for payload in payloads[:40]:
            await api.publish(channel, payload)
        await client.do("connect")
        for payload in payloads[40:]:
            await api.publish(channel, payload)
    await client.seen("publication", 50)
    assert client.publications(channel) == [
        {"offset": offset, "data": payload, "tags": {}}
        for offset, payload in enumerate(payloads, 1)
    ]
    (_, again) = client.events["subscribed"]
    assert again["was_recovering"] and again["recovered"]
    assert len(client.events["disconnected"]) == 1  # the test's own

"""Publications on two servers of one table, joined by a broker, or by polls alone.

The position check is off for all purposes, so only a hint or a poll can bring what the
other server has committed. Where a broker is connected nothing is polled.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.faultproxy import FaultProxy
from tests.harness.api import Api
from tests.harness.backends import BACKENDS
from tests.harness.metrics import scrape
from tests.harness.raw import PATH
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.harness.valkey import Valkey

OPTIONS = {"history_size": 1000, "history_ttl": 3600, "force_recovery": True}
SETTINGS = {
    "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(OPTIONS),
    "STEADWIRE_CHANNELS_NAMESPACES": json.dumps([{"name": "brief"}]),
    "STEADWIRE_CLIENT_POSITION_CHECK": "86400",
}


class Nodes:
    """Two servers, and what joins them.

    Attributes:
        valkey: The broker; None for polls.
        shared: Settings of a server on their table, without the broker.
    """

    def __init__(self, directory: Any, valkey: Valkey | None) -> None:
        self.valkey = valkey
        self.shared = shared = {**BACKENDS["dynamodb"](), **SETTINGS}
        if valkey is not None:
            shared = {**shared, **valkey.settings}
        self.servers = [
            Server(directory.mktemp("node"), shared).start_blocking() for _ in "12"
        ]

    def close(self) -> None:
        for server in self.servers:
            server.close()
        if self.valkey is not None:
            self.valkey.kill()


@pytest.fixture(
    scope="module",
    params=["valkey", pytest.param("polls", marks=pytest.mark.slow)],
)
def nodes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nodes]:
    valkey = Valkey().start() if request.param == "valkey" else None
    nodes = Nodes(tmp_path_factory, valkey)
    yield nodes
    nodes.close()


@pytest.fixture
async def apis(nodes: Nodes) -> AsyncIterator[list[Api]]:
    here, there = nodes.servers
    async with here.api() as one, there.api() as other:
        yield [one, other]


async def state_of(api: Api) -> Any:
    return (await api.request("GET", "/health/ready")).json


async def has(api: Api, condition: Callable[[Any], bool]) -> None:
    """Wait until the server's readiness is such."""
    async with asyncio.timeout(60):
        while not condition(await state_of(api)):
            await asyncio.sleep(0.05)


def broker_is_lost(state: Any) -> bool:
    return "broker" in json.dumps(state)


@pytest.mark.requirement("R12")
async def test_both_servers_deliver_what_either_commits(
    nodes: Nodes, apis: list[Api], start_host: Callable[..., Any], channel: str
) -> None:
    clients = []
    for sdk, server in itertools.product(("js-5.8.0", "python-0.7.0"), nodes.servers):
        client = await SdkClient.create(await start_host(sdk), server.url)
        await client.connect()
        await client.subscribe(channel)
        clients.append(client)
    for n in range(1, 11):
        assert await apis[n % 2].publish(channel, n) == n
    # From both at once, and through clients of both.
    await asyncio.gather(*[apis[n % 2].publish(channel, n) for n in range(11, 31)])
    await asyncio.gather(*[client.publish(channel, 0) for client in clients])
    total = 30 + len(clients)
    for client in clients:
        await client.until(
            lambda client=client: len(client.offsets(channel)) >= total, "all", 60.0
        )
        assert client.offsets(channel) == list(range(1, total + 1))
        assert client.events["unsubscribed"] == client.events["disconnected"] == []
    payloads = [client.publications(channel) for client in clients]
    assert all(one == payloads[0] for one in payloads)
    for api in apis:
        heard = (await scrape(api))["broker_hints_total"]
        assert (heard > 0) == (nodes.valkey is not None)


@pytest.mark.slow
async def test_a_server_without_the_broker_is_polled(
    nodes: Nodes,
    apis: list[Api],
    start_host: Callable[..., Any],
    make_server: Callable[..., Server],
    channel: str,
) -> None:
    host = await start_host("js-5.8.0")
    client = await SdkClient.create(host, nodes.servers[0].url)
    await client.connect()
    await client.subscribe(channel)
    third = await make_server(nodes.shared).start()
    async with third.api() as api:
        for n in range(1, 4):
            await api.publish(channel, n)
    # No hint tells of them, and no position check.
    await client.until(lambda: client.offsets(channel) == [1, 2, 3], "all", 60.0)
    assert await third.terminate() == 0


@pytest.mark.requirement("R43")
async def test_a_client_goes_on_at_the_other_server(
    nodes: Nodes, apis: list[Api], start_host: Callable[..., Any], channel: str
) -> None:
    here, there = nodes.servers
    clients = []
    async with FaultProxy(here.port) as proxy:
        for sdk in ("js-5.8.0", "python-0.7.0"):
            url = f"ws://127.0.0.1:{proxy.port}{PATH}"
            client = await SdkClient.create(await start_host(sdk), url)
            await client.connect()
            await client.subscribe(channel)
            clients.append(client)
        for n in range(1, 6):
            await apis[1].publish(channel, n)
        proxy.target = there.port
        proxy.reset()
        for n in range(6, 11):
            await apis[0].publish(channel, n)
        for client in clients:
            await client.until(
                lambda client=client: len(client.offsets(channel)) >= 10, "all", 60.0
            )
            assert client.offsets(channel) == list(range(1, 11))
            assert client.events["subscribed"][-1]["recovered"]
            await client.do("disconnect")


async def test_what_is_not_kept_reaches_the_other_server_over_the_broker_alone(
    nodes: Nodes, apis: list[Api]
) -> None:
    channel = "brief:news"
    async with await nodes.servers[0].raw() as client:
        await client.subscribe(channel)
        await apis[0].call("publish", {"channel": channel, "data": -1})
        assert (await client.push())["pub"]["data"] == -1
        if nodes.valkey is None:
            return
        # At most once: what comes before the broker has confirmed is lost.
        first = 0
        pushed = asyncio.ensure_future(client.push(60.0))
        while not pushed.done():
            first += 1
            await apis[1].call("publish", {"channel": channel, "data": first})
        got = (await pushed)["pub"]["data"]
        await apis[1].call("publish", {"channel": channel, "data": "last"})
        for n in range(got + 1, first + 1):
            assert (await client.push())["pub"]["data"] == n
        assert (await client.push())["pub"]["data"] == "last"


async def test_a_broker_that_dies_costs_time_and_nothing_else(
    nodes: Nodes, apis: list[Api], channel: str
) -> None:
    if nodes.valkey is None:
        return
    async with await nodes.servers[0].raw() as client:
        await client.subscribe(channel)
        await apis[1].publish(channel, 1)
        nodes.valkey.kill()
        for api in apis:
            await has(api, broker_is_lost)
        assert (await apis[0].request("GET", "/health/ready")).status == 200
        for n in range(2, 12):
            await apis[1].publish(channel, n)
        got = await client.publications(channel, 11, within=60.0)
        assert [pub["offset"] for pub in got] == list(range(1, 12))
        nodes.valkey.start()
        for api in apis:
            await has(api, lambda state: not broker_is_lost(state))
        for n in range(12, 15):
            await apis[1].publish(channel, n)
        got = await client.publications(channel, 3, within=60.0)
        assert [pub["offset"] for pub in got] == list(range(12, 15))

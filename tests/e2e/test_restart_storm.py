"""Restarts under many clients, and clients that come and go: all recover, none is left.

Figures are printed in `make test-slow`; what is compared are counts, never times.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.metrics import Scrape, scrape
from tests.harness.raw import CLOSE
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

MakeServer = Callable[..., Server]

CLIENTS, CHANNELS = 1000, 10
MISSED = 30  # publications of each channel


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Let this process have as many sockets as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.requirement("R43", "B11", "B79")
@pytest.mark.usefixtures("descriptors")
async def test_a_thousand_come_back_to_a_restarted_server(
    make_server: MakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server = await make_server().start()
    empty = server.memory()
    channels = [f"storm{n % CHANNELS}" for n in range(CLIENTS)]
    joined = await asyncio.gather(*(server.join(name) for name in channels))
    each = (server.memory() - empty) / CLIENTS
    epochs = {
        name: reply["epoch"] for name, (_, reply) in zip(channels, joined, strict=True)
    }
    for client, _ in joined:
        client.reset()
    async with server.api() as api:
        for n in range(1, MISSED + 1):
            for name in epochs:
                assert await api.publish(name, {"n": n}) == n
    server.kill9()
    await server.start()

    started = time.monotonic()
    back = await asyncio.gather(
        *(
            server.join(name, recover=True, offset=0, epoch=epochs[name])
            for name in channels
        )
    )
    took = time.monotonic() - started
    async with server.api() as api:
        for name in epochs:
            assert await api.publish(name, {"n": MISSED + 1}) == MISSED + 1
        for name, (client, reply) in zip(channels, back, strict=True):
            assert reply["recovered"] is True and reply["was_recovering"] is True
            found = reply["publications"]
            found += await client.publications(name, MISSED + 1 - len(found))
            assert [(pub["offset"], pub["data"]["n"]) for pub in found] == [
                (n, n) for n in range(1, MISSED + 2)
            ]
        figures = await scrape(api)
    # One try each, and one look at the database for each channel, whoever asked.
    assert figures["connections_opened_total"] == CLIENTS
    assert figures["connects_total{ok}"] == CLIENTS
    assert figures["recoveries_total{yes}"] == CLIENTS
    assert figures["recoveries_total{no}"] == 0
    assert figures["store_reads_total"] == CHANNELS
    assert sum(figures.labels("closes_total").values()) == 0
    assert each < 100 * 1024, f"{each / 1024:.0f} KiB a connection"
    with capsys.disabled():
        print(
            f"\nrestart storm: {CLIENTS} clients, {CHANNELS} channels, "
            f"{figures['store_reads_total']:.0f} reads, all recovered in {took:.2f} s, "
            f"{each / 1024:.0f} KiB of memory a connection"
        )
    for client, _ in back:
        client.reset()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("sdk", ["js-5.8.0", "python-0.7.0"])
@pytest.mark.requirement("R43", "B79")
async def test_sdks_recover_at_their_first_try(
    make_server: MakeServer,
    start_host: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    sdk: str,
) -> None:
    """Tries are counted by the restarted server: each client is opened once there."""
    server = await make_server().start()
    host = await start_host(sdk)
    clients = [await SdkClient.create(host, server.url) for _ in range(20)]
    for client in clients:
        await client.connect()
        await client.subscribe("ch")
    async with server.api() as api:
        for n in range(1, 21):
            assert await api.publish("ch", {"n": n}) == n
    for client in clients:
        await client.seen("publication", 20)
    server.kill9()
    await server.start()
    started = time.monotonic()
    for client in clients:
        await client.seen("subscribed", 2, within=30.0)
    took = time.monotonic() - started
    async with server.api() as api:
        assert await api.publish("ch", {"n": 21}) == 21
        for client in clients:
            await client.seen("publication", 21)
            assert client.offsets("ch") == list(range(1, 22))
            assert client.events["subscribed"][1]["recovered"] is True
        figures = await scrape(api)
    assert figures["connections_opened_total"] == len(clients)
    assert figures["connects_total{ok}"] == len(clients)
    assert figures["recoveries_total{yes}"] == len(clients)
    assert figures["recoveries_total{no}"] == 0
    with capsys.disabled():
        print(
            f"\nrestart, {sdk}: {len(clients)} clients recovered at their first try, "
            f"the last one {took:.2f} s after the server was ready (objective: 5 s)"
        )


def held(figures: Scrape, server: Server) -> dict[str, float]:
    """Return what the server holds: of its registries, its loop and its kernel."""
    names = ("users", "channels", "subscriptions", "tasks", "parked_connections")
    return {
        **{name: figures[name] for name in names},
        **figures.labels("connections"),
        "descriptors": server.descriptors(),
    }


async def settled(api: Api, server: Server) -> dict[str, float]:
    """Return what is held once all clients are gone, but for the API's connection."""
    async with asyncio.timeout(30):
        while True:
            figures = await scrape(api)
            left = sum(figures.labels("connections").values())
            if not left + figures["parked_connections"] and server.connections() == 1:
                return held(figures, server)
            await asyncio.sleep(0.05)


def left_nothing(before: dict[str, float], after: dict[str, float]) -> bool:
    """Tell whether no more is held; one task may have ended late in *before*, too."""
    return {**after, "tasks": 0} == {**before, "tasks": 0} and (
        before["tasks"] - 1 <= after["tasks"] <= before["tasks"]
    )


@pytest.mark.requirement("B77", "B14")
async def test_a_client_that_flaps_fifty_times_leaves_nothing(
    make_server: MakeServer,
) -> None:
    options = {"presence": True, "join_leave": True, "history_size": 10}
    server = await make_server(
        {
            "STEADWIRE_CONNECTIONS_PARKED": "0.1",
            "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(
                {**options, "history_ttl": 60, "force_recovery": True}
            ),
        }
    ).start()

    async def flap(number: int) -> None:
        client = await server.raw()
        await client.subscribe("flapping", join_leave=True)
        await client.request(publish={"channel": "flapping", "data": number})
        if number % 2:
            client.reset()
        else:
            await client.send_frame(CLOSE, (1000).to_bytes(2, "big"))
            assert (await client.closed()).code == 1000
            client.tcp.close()

    async with server.api() as api:
        for number in range(5):  # threads and caches are there after these
            await flap(number)
        before = await settled(api, server)
        for number in range(50):
            await flap(number)
        async with asyncio.timeout(30):
            # The task of a connection that has just been closed may end a moment later.
            while not left_nothing(before, after := await settled(api, server)):
                assert after["tasks"] > before["tasks"], after
                await asyncio.sleep(0.05)
        presence = await api.call("presence_stats", {"channel": "flapping"})
        assert presence == {"num_clients": 0, "num_users": 0}
        figures = await scrape(api)
        assert figures["connects_total{ok}"] == 55
        assert figures["connections_opened_total"] == 55

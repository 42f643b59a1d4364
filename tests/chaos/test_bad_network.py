"""SDK clients behind bad networks: four profiles, and one that keeps failing.

CHAOS_SEED in the environment replays a run's faults.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.chaos.load import Load, Payload, compare, has_everything
from tests.conftest import SDKS
from tests.faultproxy import PROFILES, FaultProxy
from tests.harness.api import Api
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

CHANNEL = "bad-network"

OPTIONS = {"history_size": 20_000, "history_ttl": 86_400, "force_recovery": True}
SETTINGS = {
    "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(OPTIONS),
    "STEADWIRE_CLIENT_RECOVERY_LIMIT": "10000",
}

# Publications a second; the whole of a profile takes the 2,000 at this rate.
RATES = {"stable": 100, "unstable": 100, "poor": 40, "terrible": 40}
PUBLICATIONS = 2_000

# Bytes: a second's worth under way, as on a link with a large window.
WINDOW = 256 * 1024

# Of the test that keeps failing.
FAULTS = 30
PUBLISHERS = 5
RATE_EACH = 20
CLIENTS_PER_SDK = 3

# Bytes per second; the publications are some 150 KB a second.
SLOW = 40_000


@asynccontextmanager
async def reported(
    capsys: pytest.CaptureFixture[str], name: str
) -> AsyncIterator[dict[str, Any]]:
    """Give the summary of a test, and print it at the end whatever happens."""
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))
    summary: dict[str, Any] = {"seed": seed}
    try:
        yield summary
    finally:
        with capsys.disabled():
            lines = (f"  {key}: {value}" for key, value in summary.items())
            print(f"\n{name}:", *lines, sep="\n")


async def joined(
    proxy: FaultProxy, server: Server, start_host: Callable[..., Any], per_sdk: int
) -> list[SdkClient]:
    """Return clients of every SDK, subscribed through the proxy."""
    url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
    clients: list[SdkClient] = []
    for sdk in SDKS:
        host = await start_host(sdk, own_process=True)
        clients += [await SdkClient.create(host, url) for _ in range(per_sdk)]

    async def join(client: SdkClient) -> None:
        await client.connect(within=60.0)
        # It may have recovered from a cut meanwhile; it has missed nothing.
        assert (await client.subscribe(CHANNEL, within=60.0))["offset"] == 0

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(join(client))
    return clients


async def compared(
    clients: list[SdkClient], expected: list[tuple[int, Payload]], within: float
) -> dict[str, Any]:
    """Compare what each client has, and say how it came to it."""
    codes: dict[int, int] = {}
    reconnects = 0
    for client in clients:
        reconnects += await has_everything(client, CHANNEL, expected, within=within)
        for event in client.events["connecting"][1:]:
            codes[event["code"]] = codes.get(event["code"], 0) + 1
    return {
        "publications": len(expected),
        "clients": len(clients),
        "reconnects, all recovered": reconnects,
        "why connections ended": dict(sorted(codes.items())),
    }


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.requirement("B13", "B25", "B73")
@pytest.mark.parametrize("name", RATES)
async def test_every_client_has_every_publication(
    make_server: Callable[..., Server],
    start_host: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    server = await make_server(SETTINGS).start()
    profile = PROFILES[name]
    async with (
        reported(capsys, f"network {name}") as summary,
        FaultProxy(
            server.port, profile=profile, seed=summary["seed"], buffer=WINDOW
        ) as proxy,
        server.api() as api,
    ):
        clients = await joined(proxy, server, start_host, 5)
        assert len(clients) == 20
        rng = random.Random(summary["seed"])
        published = await publish(api, rng, RATES[name])
        summary |= await compared(clients, published, within=90.0)
        if profile.cut_every is None:
            assert summary["why connections ended"] == {}
        else:
            assert summary["reconnects, all recovered"] >= len(clients)


async def publish(
    api: Api, rng: random.Random, rate: float
) -> list[tuple[int, Payload]]:
    """Publish at a rate; return offset and payload of each."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    published: list[tuple[int, Payload]] = []
    for n in range(1, PUBLICATIONS + 1):
        # The rate is input of the test, not a wait for something.
        await asyncio.sleep(started + n / rate - loop.time())
        data = {"n": n, "text": "x" * rng.choice([10, 100, 1000, 4000])}
        published.append((await api.publish(CHANNEL, data), data))
    assert [offset for offset, _ in published] == list(range(1, PUBLICATIONS + 1))
    return published


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.requirement("R22", "B54", "B72")
async def test_a_network_that_keeps_failing(
    make_server: Callable[..., Server],
    start_host: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = await make_server(
        {
            **SETTINGS,
            # Small, so that a client that does not read meets these bounds.
            "STEADWIRE_CLIENT_QUEUE_SIZE": "300000",
            "STEADWIRE_CLIENT_RECOVERY_SIZE": "100000",
            "STEADWIRE_CLIENT_WRITE_TIMEOUT": "1",
            "STEADWIRE_SERVER_SEND_BUFFER": "32768",
        }
    ).start()
    async with (
        reported(capsys, "bad network") as summary,
        FaultProxy(server.port, seed=summary["seed"]) as proxy,
        server.api() as api,
    ):
        clients = await joined(proxy, server, start_host, CLIENTS_PER_SDK)
        load = Load(api, CHANNEL, summary["seed"], rate=RATE_EACH)
        async with asyncio.timeout(120.0), asyncio.TaskGroup() as group:
            for publisher in range(PUBLISHERS):
                group.create_task(load.run(publisher))
            summary["faults"] = await fail(proxy, random.Random(summary["seed"]))
            load.stop()
        total = len(load.acknowledged)
        expected = [(n, load.acknowledged[n]) for n in range(1, total + 1)]
        compare("history", await api.whole_history(CHANNEL), expected)
        summary |= await compared(clients, expected, within=30.0)
        assert summary["reconnects, all recovered"] >= len(clients)


async def fail(proxy: FaultProxy, faults: random.Random) -> dict[str, int]:
    """Let the network fail in turns; return how often in which way."""
    done = {"reset": 0, "stall": 0, "throttle": 0}
    for _ in range(FAULTS):
        # The times are input of the test, not waits for something.
        await asyncio.sleep(faults.uniform(0.0, 0.8))
        fault = faults.choice(list(done))
        done[fault] += 1
        if fault == "reset":
            proxy.reset()
        elif fault == "stall":
            proxy.stall()
            await asyncio.sleep(faults.uniform(0.0, 2.5))
            proxy.resume()
        else:
            proxy.throttle(SLOW)
            await asyncio.sleep(faults.uniform(0.0, 2.5))
            proxy.throttle(None)
    return done

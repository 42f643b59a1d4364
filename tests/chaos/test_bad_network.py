"""Chaos test of the network: SDK clients behind a proxy that keeps failing.

CHAOS_SEED in the environment replays a run's faults.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.load import Load, compare, has_arrived
from tests.faultproxy import FaultProxy
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

SDKS = ("js-5.8.0", "python-0.7.0", "js-5.5.3", "python-0.4.4")
CLIENTS_PER_SDK = 3
CHANNEL = "bad-network"
FAULTS = 30
PUBLISHERS = 5
RATE_EACH = 20

# Bytes per second; the publications are some 150 KB a second.
SLOW = 40_000


@pytest.mark.requirement("R22", "B54", "B73")
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_bad_network(
    make_server: Callable[..., Server],
    start_host: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))
    options = {"history_size": 20_000, "history_ttl": 86_400, "force_recovery": True}
    settings = {
        "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(options),
        "STEADWIRE_CLIENT_RECOVERY_LIMIT": "10000",
        # Small, so that a client that does not read meets these bounds.
        "STEADWIRE_CLIENT_QUEUE_SIZE": "300000",
        "STEADWIRE_CLIENT_RECOVERY_SIZE": "100000",
        "STEADWIRE_CLIENT_WRITE_TIMEOUT": "1",
        "STEADWIRE_SERVER_SEND_BUFFER": "32768",
    }
    server = await make_server(settings).start()
    summary: dict[str, Any] = {"seed": seed}
    try:
        async with FaultProxy(server.port, seed=seed) as proxy:
            await bad_network(server, proxy, start_host, seed, summary)
    finally:
        with capsys.disabled():
            lines = (f"  {name}: {value}" for name, value in summary.items())
            print("\nbad network:", *lines, sep="\n")


async def bad_network(
    server: Server,
    proxy: FaultProxy,
    start_host: Callable[..., Any],
    seed: int,
    summary: dict[str, Any],
) -> None:
    url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
    clients: list[SdkClient] = []
    for sdk in SDKS:
        host = await start_host(sdk, own_process=True)
        for _ in range(CLIENTS_PER_SDK):
            clients.append(await SdkClient.create(host, url))
    for client in clients:
        await client.connect()
        assert (await client.subscribe(CHANNEL))["offset"] == 0

    faults = random.Random(seed)
    done: dict[str, int] = {"cut": 0, "stall": 0, "throttle": 0}
    async with server.api() as api:
        load = Load(api, CHANNEL, seed, rate=RATE_EACH)
        async with asyncio.timeout(120.0), asyncio.TaskGroup() as group:
            for publisher in range(PUBLISHERS):
                group.create_task(load.run(publisher))
            for _ in range(FAULTS):
                # The times are input of the test, not waits for something.
                await asyncio.sleep(faults.uniform(0.0, 0.8))
                fault = faults.choice(list(done))
                done[fault] += 1
                if fault == "cut":
                    proxy.reset()
                elif fault == "stall":
                    proxy.stall()
                    await asyncio.sleep(faults.uniform(0.0, 2.5))
                    proxy.resume()
                else:
                    proxy.throttle(SLOW)
                    await asyncio.sleep(faults.uniform(0.0, 2.5))
                    proxy.throttle(None)
            load.stop()

        total = len(load.acknowledged)
        expected = [(n, load.acknowledged[n]) for n in range(1, total + 1)]
        compare("history", await api.whole_history(CHANNEL), expected)

    for client in clients:
        await has_arrived(client, total)
    codes: dict[int, int] = {}
    reconnects = 0
    for client in clients:
        compare(
            f"{client.host.name} {client.name}", client.publications(CHANNEL), expected
        )
        for event in client.events["connecting"][1:]:
            codes[event["code"]] = codes.get(event["code"], 0) + 1
        for event in client.events["subscribed"][1:]:
            assert event["was_recovering"] and event["recovered"], event
            reconnects += 1
        assert client.events["disconnected"] == []
        assert client.events["unsubscribed"] == []
    summary |= {
        "faults": done,
        "acknowledged": total,
        "clients": len(clients),
        "reconnects, all recovered": reconnects,
        "why connections ended": dict(sorted(codes.items())),
    }
    assert reconnects >= len(clients)

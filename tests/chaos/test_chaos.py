"""Chaos test of the server: it is killed again and again under load.

Contract G1, G2 and G3 at once: what was acknowledged is stored, offsets are dense,
and every client sees every publication exactly once and in order, although the
process that owns the listening socket dies by SIGKILL at random moments.

CHAOS_SEED in the environment replays a run's moments and payload sizes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.load import Load, compare, has_arrived
from tests.harness.api import Api
from tests.harness.fixtures import backends
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

SDKS = ("js-5.8.0", "python-0.7.0")
CLIENTS_PER_SDK = 10
CLIENTS = CLIENTS_PER_SDK * len(SDKS)

PUBLISHERS = 10
RATE_EACH = 11  # started per second; what must be shown is 50 acknowledged, together

KILLS = 13
# Killed again while clients are still coming back from the kill before.
DOUBLE_KILLS = (4, 8, 11)

HISTORY_SIZE = 20_000
CHANNEL = "chaos"


class RecoveryGap:
    """Measures how much each recovery of one client had to bring."""

    def __init__(self, client: SdkClient, load: Load) -> None:
        self._load = load
        self._last = 0
        self.longest_gap = 0
        client.on_event = self._event

    def _event(self, event: dict[str, Any]) -> None:
        if event["event"] == "publication":
            self._last = event["offset"]
        elif event["event"] == "subscribed":
            # Publications that it recovers are reported after this.
            self.longest_gap = max(self.longest_gap, self._load.top - self._last)


backend = backends("sqlite", slow=("dynamodb",))


class Killer:
    """Kills the server at seeded moments and starts it again.

    Attributes:
        kills: So far.
        in_flight: Kills that interrupted at least one publish.
    """

    def __init__(
        self, server: Server, api: Api, load: Load, clients: list[SdkClient], seed: int
    ) -> None:
        self._server = server
        self._api = api
        self._load = load
        self._clients = clients
        self._random = random.Random(seed)
        self.kills = 0
        self.in_flight = 0

    async def run(self) -> None:
        """Kill as often as planned."""
        for number in range(1, KILLS + 1):
            double = number in DOUBLE_KILLS
            assert self._server.owns_its_port()
            # The times are input of the test, not waits for something.
            await asyncio.sleep(self._random.uniform(0.0, 0.2 if double else 3.0))
            if number % 4:  # every fourth at any moment, also an idle one
                await self._load.something_in_flight()
            before = [len(client.events["subscribed"]) for client in self._clients]
            await self._kill()
            if number + 1 in DOUBLE_KILLS:
                continue
            for client, count in zip(self._clients, before, strict=True):
                await client.seen("subscribed", count + 1, within=20.0)

    async def _kill(self) -> None:
        interrupted = self._load.interrupted
        self._load.up.clear()
        self._server.kill9()
        self.kills += 1
        # Requests written before the kill end with EOF; idle connections are dropped.
        self._api.drop_connections()
        await asyncio.sleep(self._random.uniform(0.0, 0.5))
        await self._server.start()
        self.in_flight += self._load.interrupted > interrupted
        self._load.up.set()


@pytest.mark.requirement("R22", "B56", "B69")
@pytest.mark.slow
@pytest.mark.timeout(420)
async def test_chaos(
    make_server: Callable[..., Server],
    start_host: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))
    summary: dict[str, Any] = {"seed": seed}
    try:
        await chaos(make_server, start_host, seed, summary)
    finally:
        with capsys.disabled():
            lines = (f"  {name}: {value}" for name, value in summary.items())
            print("\nchaos:", *lines, sep="\n")


async def chaos(
    make_server: Callable[..., Server],
    start_host: Callable[..., Any],
    seed: int,
    summary: dict[str, Any],
) -> None:
    options = {
        "history_size": HISTORY_SIZE,
        "history_ttl": 86_400,
        "force_recovery": True,
    }
    settings = {
        "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(options),
        # Two kills in a row, and publishers that catch up, come near the default.
        "STEADWIRE_CLIENT_RECOVERY_LIMIT": str(HISTORY_SIZE // 10),
    }
    server = await make_server(settings).start()

    clients: list[SdkClient] = []
    for sdk in SDKS:
        host = await start_host(sdk, own_process=True)
        for _ in range(CLIENTS_PER_SDK):
            clients.append(await SdkClient.create(host, server.url))
    for client in clients:
        await client.connect()
        assert (await client.subscribe(CHANNEL))["offset"] == 0

    async with server.api() as api:
        load = Load(api, CHANNEL, seed, rate=RATE_EACH)
        gaps = [RecoveryGap(client, load) for client in clients]
        killer = Killer(server, api, load, clients, seed + 1)
        started = time.monotonic()
        async with asyncio.timeout(300.0), asyncio.TaskGroup() as group:
            for publisher in range(PUBLISHERS):
                group.create_task(load.run(publisher))
            await killer.run()
            while len(load.acknowledged) < 5_500:
                api.written.clear()
                await api.written.wait()
            load.stop()
        elapsed = time.monotonic() - started

        total = len(load.acknowledged)
        reconnects = [event for c in clients for event in c.events["subscribed"][1:]]
        recovered = sum(e["was_recovering"] and e["recovered"] for e in reconnects)
        longest_gap = max(gap.longest_gap for gap in gaps)
        summary |= {
            "SIGKILLs": killer.kills,
            "of which interrupted a publish": killer.in_flight,
            "publishes interrupted": load.interrupted,
            "publishes told to try again": load.temporary,
            "acknowledged": total,
            "acknowledged per second, outages included": round(total / elapsed, 1),
            "clients": len(clients),
            "reconnects": len(reconnects),
            "of which recovered": recovered,
            "longest gap": longest_gap,
            "history size": HISTORY_SIZE,
        }

        assert killer.kills >= 10
        assert killer.in_flight >= 8
        assert total >= 5_000
        assert total / elapsed >= 50
        assert len(reconnects) >= 10 * CLIENTS
        assert recovered == len(reconnects)
        assert longest_gap > 0 and longest_gap * 10 <= HISTORY_SIZE

        # Offsets are dense, and nothing is stored that was not acknowledged.
        assert sorted(load.acknowledged) == list(range(1, total + 1))
        expected = [(n, load.acknowledged[n]) for n in range(1, total + 1)]
        stored = await api.whole_history(CHANNEL)
        compare("history", stored, expected)

    for client in clients:
        await has_arrived(client, total)
    delivered = 0
    for client in clients:
        publications = client.publications(CHANNEL)
        compare(f"{client.host.name} {client.name}", publications, expected)
        delivered += len(publications)
        assert client.events["disconnected"] == []
        assert client.events["unsubscribed"] == []
    summary["deliveries compared"] = delivered

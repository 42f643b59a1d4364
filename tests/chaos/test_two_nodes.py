"""Chaos with two servers on one table: kills, a broker that dies, a cut network.

Publishers repeat with the same key at either server until they are acknowledged; SDK
clients reconnect to the other server. At the end each client has what was acknowledged:
each offset once, in order, and nothing else.

``CHAOS_SEED`` repeats a run as far as the machine lets it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.load import Load, Payload, has_everything
from tests.faultproxy import FaultProxy
from tests.harness.api import Api
from tests.harness.backends import BACKENDS
from tests.harness.metrics import scrape
from tests.harness.raw import PATH
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.harness.valkey import Valkey

SDKS = ("js-5.8.0", "python-0.7.0")
CLIENTS_PER_SDK = 10
PUBLISHERS = 5
RATE_EACH = 8  # per second
CHANNEL = "chaos"
HISTORY_SIZE = 20_000

FAULTS = ("kill",) * 6 + ("broker",) * 3 + ("black hole",) * 3 + ("reset",) * 3


class Either:
    """The HTTP API of the servers that are up, one chosen for each call."""

    def __init__(self, apis: list[Api], seed: int) -> None:
        self.up = list(apis)
        self._random = random.Random(seed)

    async def publish(
        self, channel: str, data: Payload, *, idempotency_key: str
    ) -> int:
        api = self._random.choice(self.up)
        try:
            return await api.publish(channel, data, idempotency_key=idempotency_key)
        except ConnectionError:
            await asyncio.sleep(0.02)  # it was killed a moment ago
            raise


class Nodes:
    """Two servers, a broker, and a breakable wire from each of them to it.

    Attributes:
        entrances: Where clients connect; each leads to a server, to the other one while
            its own is down.
        wires: From each server to the broker.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.valkey = Valkey()
        self.seed = seed
        self.done = dict.fromkeys(FAULTS, 0)
        self.servers: list[Server] = []
        self.apis: list[Api] = []
        self.entrances: list[FaultProxy] = []
        self.wires: list[FaultProxy] = []
        self._directory = directory
        self._random = random.Random(seed)

    async def start(self, stack: AsyncExitStack) -> None:
        stack.callback(self.valkey.kill)
        self.valkey.start()
        options = {
            "history_size": HISTORY_SIZE,
            "history_ttl": 86_400,
            "force_recovery": True,
        }
        shared = {
            **BACKENDS["dynamodb"](),
            **self.valkey.settings,
            "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(options),
            "STEADWIRE_CLIENT_RECOVERY_LIMIT": str(HISTORY_SIZE // 10),
            "STEADWIRE_DYNAMODB_NODE_TIMEOUT": "5",
        }
        for name in ("a", "b"):
            wire = await stack.enter_async_context(
                FaultProxy(self.valkey.port, seed=self.seed)
            )
            directory = self._directory / name
            directory.mkdir()
            url = {"STEADWIRE_BROKER_URL": f"redis://127.0.0.1:{wire.port}"}
            server = Server(directory, {**shared, **url})
            stack.callback(server.close)
            await server.start()
            entrance = await stack.enter_async_context(
                FaultProxy(server.port, seed=self.seed)
            )
            self.servers.append(server)
            self.apis.append(await stack.enter_async_context(server.api()))
            self.entrances.append(entrance)
            self.wires.append(wire)
        self.either = Either(self.apis, self.seed)

    async def run(self) -> None:
        """Do every fault once, in a seeded order, at seeded times."""
        faults = list(FAULTS)
        self._random.shuffle(faults)
        victims = [0, 1] * (FAULTS.count("kill") // 2)  # each client's own dies, too
        self._random.shuffle(victims)
        for fault in faults:
            await asyncio.sleep(self._random.uniform(0.0, 1.5))
            victim = victims.pop() if fault == "kill" else self._random.randrange(2)
            if fault == "kill":
                await self._kill(victim)
            elif fault == "broker":
                self.valkey.kill()
                await asyncio.sleep(self._random.uniform(0.0, 3.0))
                self.valkey.start()
            elif fault == "reset":
                self.wires[victim].reset()
            else:
                self.wires[victim].black_hole()
                await asyncio.sleep(self._random.uniform(1.0, 5.0))
                self.wires[victim].resume()
            self.done[fault] += 1

    async def _kill(self, victim: int) -> None:
        server, other = self.servers[victim], self.servers[1 - victim]
        self.either.up = [self.apis[1 - victim]]
        self.entrances[victim].target = other.port
        server.kill9()
        self.apis[victim].drop_connections()
        await asyncio.sleep(self._random.uniform(0.0, 1.0))
        await server.start()
        self.either.up = list(self.apis)
        self.entrances[victim].target = server.port
        self.entrances[victim].cut()  # its clients come back


@pytest.mark.requirement("R12", "R43")
@pytest.mark.slow
@pytest.mark.timeout(420)
async def test_chaos_with_two_servers(
    tmp_path: Path,
    start_host: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(2**32))
    summary: dict[str, Any] = {"seed": seed}
    try:
        async with AsyncExitStack() as stack:
            nodes = Nodes(tmp_path, seed)
            await nodes.start(stack)
            await chaos(nodes, start_host, summary)
    finally:
        with capsys.disabled():
            lines = (f"  {name}: {value}" for name, value in summary.items())
            print("\nchaos with two servers:", *lines, sep="\n")


async def chaos(
    nodes: Nodes, start_host: Callable[..., Any], summary: dict[str, Any]
) -> None:
    clients: list[SdkClient] = []
    for sdk in SDKS:
        host = await start_host(sdk, own_process=True)
        for number in range(CLIENTS_PER_SDK):
            url = f"ws://127.0.0.1:{nodes.entrances[number % 2].port}{PATH}"
            clients.append(await SdkClient.create(host, url))
    for client in clients:
        await client.connect()
        await client.subscribe(CHANNEL)
    load = Load(nodes.either, CHANNEL, nodes.seed, rate=RATE_EACH)  # type: ignore[arg-type]
    async with asyncio.timeout(300.0), asyncio.TaskGroup() as group:
        for publisher in range(PUBLISHERS):
            group.create_task(load.run(publisher))
        await nodes.run()
        load.stop()
    total = len(load.acknowledged)
    summary |= {
        "faults": nodes.done,
        "publishes interrupted": load.interrupted,
        "publishes told to try again": load.temporary,
        "acknowledged": total,
        "reconnects": sum(len(c.events["subscribed"]) - 1 for c in clients),
    }
    assert nodes.done == {fault: FAULTS.count(fault) for fault in FAULTS}
    assert sorted(load.acknowledged) == list(range(1, total + 1))
    expected = [(n, load.acknowledged[n]) for n in range(1, total + 1)]
    delivered = 0
    for client in clients:
        assert await has_everything(client, CHANNEL, expected, within=90.0)
        delivered += len(client.publications(CHANNEL))
    assert delivered == total * len(clients)
    summary["deliveries compared"] = delivered
    heard = [(await scrape(api))["broker_hints_total"] for api in nodes.apis]
    summary["hints heard in the last lives"] = heard

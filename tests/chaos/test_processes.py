"""Several processes on one store, killed or replaced one by one under load.

Clients and publishers come through a balancer, and so to another process than the one
that ended. Each client's list equals what was acknowledged: nothing lost, nothing
doubled (G1 to G4).

PROCESSES_SEED in the environment replays a run's moments and payload sizes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.balancer import Balancer
from tests.chaos.load import Load, compare, has_everything
from tests.harness.api import Api
from tests.harness.backends import PROCESSES, Backend
from tests.harness.fixtures import backends
from tests.harness.raw import PATH
from tests.harness.sdk import SdkClient
from tests.harness.server import API_KEY, Server

SDKS = ("js-5.8.0", "python-0.7.0")
CLIENTS_PER_SDK = 10
PUBLISHERS = 5
RATE_EACH = 10  # a second
ENDS = 8  # of processes
CHANNEL = "processes"

backend = backends("sqlite-workers", "dynamodb-nodes")


async def end(server: Server, *, kill: bool) -> None:
    """End a process and start it again."""
    if kill:
        server.kill9()
    else:
        assert await server.terminate() == 0
    await server.start()


@pytest.fixture
def processes(backend: Backend, tmp_path: Path) -> Iterator[list[Server]]:
    options = {"history_size": 20_000, "history_ttl": 86_400, "force_recovery": True}
    settings = {
        **backend(),
        "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(options),
        "STEADWIRE_CLIENT_RECOVERY_LIMIT": "5000",
        "STEADWIRE_SERVER_DRAIN_TIME": "1",
        # A killed process is not to keep the clients' places.
        "STEADWIRE_DYNAMODB_NODE_TIMEOUT": "5",
    }
    del settings[PROCESSES]
    servers = [Server(tmp_path, settings) for _ in range(2)]
    yield servers
    for server in servers:
        server.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kill", [True, False], ids=["killed", "replaced"])
@pytest.mark.requirement("R12", "R43", "R49")
async def test_processes_end_one_by_one_under_load(
    processes: list[Server],
    start_host: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    kill: bool,
) -> None:
    seed = int(os.environ.get("PROCESSES_SEED") or random.randrange(2**32))
    print("seed", seed)
    rng = random.Random(seed)
    for server in processes:
        await server.start()
    clients: list[SdkClient] = []
    async with Balancer(*(each.port for each in processes)) as balancer:
        url = f"ws://127.0.0.1:{balancer.port}{PATH}"
        for sdk in SDKS:
            host = await start_host(sdk, own_process=True)
            for _ in range(CLIENTS_PER_SDK):
                clients.append(await SdkClient.create(host, url))
        for client in clients:
            await client.connect()
            assert (await client.subscribe(CHANNEL))["offset"] == 0
        assert min(balancer.taken.values()) >= CLIENTS_PER_SDK  # spread over both

        async with Api(balancer.port, API_KEY) as api:
            load = Load(api, CHANNEL, seed, rate=RATE_EACH)
            async with asyncio.timeout(240), asyncio.TaskGroup() as group:
                for publisher in range(PUBLISHERS):
                    group.create_task(load.run(publisher))
                for number in range(ENDS):
                    # The time is input of the test, not a wait for something.
                    await asyncio.sleep(rng.uniform(0.0, 1.0))
                    await load.something_in_flight()
                    await end(processes[number % 2], kill=kill)
                target = len(load.acknowledged) + 50
                while len(load.acknowledged) < target:
                    api.written.clear()
                    await api.written.wait()
                load.stop()
            total = len(load.acknowledged)
            assert sorted(load.acknowledged) == list(range(1, total + 1))
            expected = [(n, load.acknowledged[n]) for n in range(1, total + 1)]
            compare("history", await api.whole_history(CHANNEL), expected)
        for client in clients:
            assert await has_everything(client, CHANNEL, expected)
        for client in clients:
            await client.disconnect()
    with capsys.disabled():
        print(
            f"\n{ENDS} processes {'killed' if kill else 'replaced'}: {total} "
            f"publications acknowledged, {load.interrupted} unanswered and "
            f"{load.temporary} refused calls repeated, {len(clients)} exact lists"
        )

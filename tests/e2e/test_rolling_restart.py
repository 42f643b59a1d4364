"""Rolling restarts behind nginx, under load: nothing is lost, and nothing doubled.

ROLLING_SEED in the environment repeats a run's payloads.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.load import Load, compare, has_everything
from tests.harness.api import Api
from tests.harness.fixtures import backends
from tests.harness.ports import free_port
from tests.harness.process import ROOT
from tests.harness.proxies import start_proxy
from tests.harness.raw import PATH
from tests.harness.sdk import SdkClient
from tests.harness.server import API_KEY, Server

RESTARTS = 4
SDKS = ("js-5.8.0", "python-0.7.0")
CLIENTS_PER_SDK = 5
PUBLISHERS = 5
RATE_EACH = 20  # a second
CHANNEL = "rolling"

backend = backends("sqlite", "dynamodb")


def documented() -> str:
    """Return the configuration of docs/operations.md, with the maps of running.md."""
    running = (ROOT / "docs" / "running.md").read_text()
    operations = (ROOT / "docs" / "operations.md").read_text()
    maps = re.findall(r"^map .*?^}\n", running, re.M | re.S)
    assert len(maps) == 2
    [block] = re.findall(r"^```nginx\n(.*?)^```$", operations, re.M | re.S)
    return "".join([*maps, block])


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[[int, int], int]]:
    """Start nginx before two ports, and return its own port."""
    started: list[subprocess.Popen[bytes]] = []

    def start(first: int, second: int) -> int:
        own = free_port()
        block = documented().replace("listen 80;", f"listen {own};")
        block = block.replace("127.0.0.1:8000", f"127.0.0.1:{first}")
        block = block.replace("127.0.0.1:8001", f"127.0.0.1:{second}")
        started.append(start_proxy("nginx", block, tmp_path))
        return own

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


async def roll(old: Server, new: Server, *, shared: bool) -> None:
    """Start *new*, and end *old* when *new* waits for its file, or is ready."""
    new.spawn()
    if shared:
        await asyncio.to_thread(new.wait_ready)
    else:
        await new.logged("waiting for the store: another process has it open")
    assert await old.terminate() == 0
    await asyncio.to_thread(new.wait_ready)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.requirement("R49", "R43")
async def test_a_rolling_restart_under_load(
    make_server: Callable[..., Server],
    start_host: Callable[..., Any],
    nginx: Callable[[int, int], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = int(os.environ.get("ROLLING_SEED") or random.randrange(2**32))
    print("seed", seed)
    options = {"history_size": 20_000, "history_ttl": 86_400, "force_recovery": True}
    old = make_server(
        {
            "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(options),
            "STEADWIRE_CLIENT_RECOVERY_LIMIT": "5000",
            # Where two servers publish, each looks for what the other has published.
            "STEADWIRE_CLIENT_POSITION_CHECK": "0.5",
        }
    )
    shared = old.settings.get("STEADWIRE_STORE_BACKEND") == "dynamodb"
    if shared:
        old.settings["STEADWIRE_SERVER_DRAIN_TIME"] = "1"
    new = make_server(old.settings)
    assert new.settings == old.settings
    old.port, new.port = free_port(), free_port()
    await old.start()
    port = nginx(old.port, new.port)
    clients: list[SdkClient] = []
    for sdk in SDKS:
        host = await start_host(sdk)
        for _ in range(CLIENTS_PER_SDK):
            clients.append(await SdkClient.create(host, f"ws://127.0.0.1:{port}{PATH}"))
    for client in clients:
        await client.connect()
        assert (await client.subscribe(CHANNEL))["offset"] == 0

    async with Api(port, API_KEY) as api:
        load = Load(api, CHANNEL, seed, rate=RATE_EACH)
        async with asyncio.timeout(240), asyncio.TaskGroup() as group:
            for publisher in range(PUBLISHERS):
                group.create_task(load.run(publisher))
            for _ in range(RESTARTS):
                await load.something_in_flight()
                before = [len(client.events["subscribed"]) for client in clients]
                await roll(old, new, shared=shared)
                old, new = new, old
                for client, count in zip(clients, before, strict=True):
                    await client.seen("subscribed", count + 1, within=30.0)
            load.stop()
        total = len(load.acknowledged)
        assert sorted(load.acknowledged) == list(range(1, total + 1))
        expected = [(n, load.acknowledged[n]) for n in range(1, total + 1)]
        compare("history", await api.whole_history(CHANNEL), expected)
    for client in clients:
        await has_everything(client, CHANNEL, expected)
    with capsys.disabled():
        print(
            f"\n{RESTARTS} rolling restarts on {'DynamoDB' if shared else 'SQLite'}: "
            f"{total} publications acknowledged, {load.interrupted} unanswered and "
            f"{load.temporary} refused calls repeated, {len(clients)} exact lists"
        )

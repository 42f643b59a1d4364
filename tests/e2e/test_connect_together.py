"""Clients that connect in one turn at a limit: nobody who lives is closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import SDKS
from tests.faultproxy import FaultProxy
from tests.harness.fixtures import server_with
from tests.harness.metrics import scrape
from tests.harness.process import stopped
from tests.harness.raw import CLOSE, RawClient
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.harness.tokens import connection, settings

LIMIT = 5
REJECTED, FULL = 3504, 3013

full = server_with(
    settings(
        STEADWIRE_CONNECTIONS_LIMIT=str(LIMIT),
    )
)
rejecting = server_with(
    settings(
        STEADWIRE_CONNECTIONS_USER_LIMIT=str(LIMIT),
        STEADWIRE_CONNECTIONS_POLICY="reject",
    )
)


@pytest.fixture(params=[FULL, REJECTED], ids=["process", "user"])
def code(request: pytest.FixtureRequest) -> int:
    """Return the code with which the limit of the test refuses."""
    number: int = request.param
    return number


@pytest.fixture
def server(code: int, request: pytest.FixtureRequest) -> Server:
    """Return the server with that limit."""
    name = "full" if code == FULL else "rejecting"
    server: Server = request.getfixturevalue(name)
    return server


def user(code: int, number: int) -> str:
    return f"user{number}" if code == FULL else "ann"


async def nobody_left(server: Server) -> None:
    """Wait until the server has forgotten the clients of the round before."""
    async with asyncio.timeout(10.0), server.api() as api:
        while True:
            [node] = (await api.call("info", {}))["nodes"]
            if node["num_clients"] == 0:
                return
            await asyncio.sleep(0.01)


async def test_the_reply_comes_before_the_ping_of_a_probe(
    server: Server, code: int
) -> None:
    await nobody_left(server)
    clients = [await RawClient.open(server.port) for _ in range(LIMIT + 3)]
    # What comes while it stands still is handled in one turn.
    with stopped(server.process.pid):
        for number, client in enumerate(clients):
            token = connection(user(code, number))
            await client.send({"id": 1, "connect": {"token": token}})
    known = asyncio.Barrier(len(clients))
    codes = await asyncio.gather(*(first_of(client, known) for client in clients))
    # In which order the server finds them is the kernel's.
    assert sorted(codes) == [0] * LIMIT + [code] * 3
    # And they are still there.
    for client, outcome in zip(clients, codes, strict=True):
        if not outcome:
            assert (await client.request(rpc={}))["error"]["code"] == 108
            client.tcp.close()


async def first_of(client: RawClient, known: asyncio.Barrier) -> int:
    """Read what comes first, as an SDK does; return the code of a close, or 0.

    Pings that come later are answered, until the outcome of every client is known.
    """
    frame = await client.frame(10.0)
    if frame.opcode == CLOSE:
        await known.wait()
        return int.from_bytes(frame.payload[:2], "big")
    lines = frame.payload.decode().split("\n")
    assert json.loads(lines[0])["id"] == 1  # a ping before it would not be answered
    for line in lines[1:]:
        assert line == "{}"
        await client.send_text("{}")
    answering = asyncio.create_task(client.message(600.0))
    await known.wait()
    answering.cancel()
    return 0


@pytest.mark.slow
async def test_200_rounds_of_all_sdks(
    server: Server, code: int, start_host: Callable[..., Any]
) -> None:
    await nobody_left(server)
    async with FaultProxy(server.port) as proxy:
        await rounds(server, proxy, await made(proxy, server, code, start_host))
    ends = {line["code"] for line in logged(server) if line.get("by") == "server"}
    assert ends == {code}


async def made(
    proxy: FaultProxy, server: Server, code: int, start_host: Callable[..., Any]
) -> list[SdkClient]:
    """Return two clients of each SDK."""
    url = server.url.replace(str(server.port), str(proxy.port))
    clients = []
    for name in SDKS:
        host = await start_host(name, own_process=True)
        for _ in range(2):
            token = connection(user(code, len(clients)))
            client = await SdkClient.create(
                host, url, token=token, min_delay=60.0, max_delay=90.0
            )
            clients.append(client)
    return clients


async def rounds(server: Server, proxy: FaultProxy, clients: list[SdkClient]) -> None:
    before_all = await refused(server)
    for round_ in range(1, 201):
        before = [len(client.log) for client in clients]
        proxy.hold()
        async with asyncio.TaskGroup() as group, asyncio.timeout(10.0):
            for client in clients:
                group.create_task(client.do("connect"))
            while proxy.held < len(clients):
                await asyncio.sleep(0.001)
            # What comes while it stands still is handled in one turn.
            with stopped(server.process.pid):
                await proxy.release()
        # Not every SDK tells of a 3013 that comes before the reply.
        async with asyncio.timeout(10.0):
            while await refused(server) < before_all + 3 * round_:
                await asyncio.sleep(0.01)
            while sum(map(is_connected, clients, before)) < LIMIT:
                await asyncio.sleep(0.01)
        inside = 0
        for client, seen in zip(clients, before, strict=True):
            happened = [event["event"] for event in client.log[seen:]]
            if is_connected(client, seen):  # and still there
                assert happened == ["connecting", "connected"], (round_, happened)
                inside += 1
            await client.do("disconnect")
        assert inside == LIMIT, round_
        await nobody_left(server)


def is_connected(client: SdkClient, seen: int) -> bool:
    return any(event["event"] == "connected" for event in client.log[seen:])


async def refused(server: Server) -> float:
    async with server.api() as api:
        return sum((await scrape(api)).labels("admissions_refused_total").values())


def logged(server: Server) -> list[dict[str, Any]]:
    lines = [line for line in server.output().splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]

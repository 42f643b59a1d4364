"""The application under Hypercorn's own command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.harness.raw import RawClient
from tests.harness.server import Server


# One SDK is enough: this is about text and binary frames through the other server.
@pytest.mark.parametrize(
    "make_client", ["js-5.8.0", "js-5.8.0 protobuf"], indirect=True
)
async def test_serves_and_recovers(
    make_server: Callable[..., Server], make_client: Callable[..., Any], channel: str
) -> None:
    server = await make_server(app="service.app:app").start()
    client = await make_client(server.url)
    await client.connect()
    await client.subscribe(channel)
    async with server.api() as api:
        for n in range(1, 6):
            assert await api.publish(channel, {"n": n}) == n
        await client.seen("publication", 5)
        await client.publish(channel, {"n": 6})
        await client.cut()
        await client.seen("subscribed", 2)
        server.kill9()
        await server.start()
        api.drop_connections()
        for n in range(7, 11):
            assert await api.publish(channel, {"n": n}) == n
        await client.seen("subscribed", 3)
    await client.seen("publication", 10)
    assert client.publications(channel) == [
        {"offset": n, "data": {"n": n}, "tags": {}} for n in range(1, 11)
    ]
    again = client.events["subscribed"][1:]
    flags = [(event["was_recovering"], event["recovered"]) for event in again]
    assert flags == [(True, True)] * 2


@pytest.mark.slow
async def test_its_workers_share_a_store(
    make_server: Callable[..., Server], channel: str
) -> None:
    settings = {
        "STEADWIRE_STORE_SHARED_BY": "tests",
        "STEADWIRE_LOG_LEVEL": "info",
    }
    server = make_server(settings, app="service.app:app", options=("--workers=2",))
    await server.start()
    clients: list[RawClient] = []
    async with asyncio.timeout(60):
        while len(serving(server)) < 2:
            clients.append((await server.join(channel))[0])
    for number in range(1, 11):
        async with server.api() as api:  # a new connection, to any of them
            assert await api.publish(channel, number) == number
    for client in clients:
        assert [
            (await client.push(within=20.0))["pub"]["offset"] for _ in range(10)
        ] == list(range(1, 11))
    assert await server.terminate() == 0


def serving(server: Server) -> set[int]:
    """Return the workers that have a client."""
    return {
        child.pid
        for child in server.process.children(recursive=True)
        if any(
            one.status == psutil.CONN_ESTABLISHED
            for one in child.net_connections("tcp")
        )
    }

"""The application under Hypercorn's own command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

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

"""A namespace with a batch window, read by the official SDKs on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.fixtures import server_with
from tests.harness.server import Server

MakeClient = Callable[..., Any]

NAMESPACES = [
    {
        "name": "tokens",
        "history_size": 10_000,
        "history_ttl": 300,
        "force_recovery": True,
        "batch_window": 0.05,
    },
    {"name": "typing", "batch_window": 0.05},
]

SETTINGS = {"STEADWIRE_CHANNELS_NAMESPACES": json.dumps(NAMESPACES)}

server = server_with(SETTINGS)
ended = server_with(SETTINGS)

pytestmark = pytest.mark.requirement("R20")


async def test_every_publication_comes_once_and_in_order_across_a_lost_connection(
    server: Server, make_client: MakeClient, channel: str
) -> None:
    channel = f"tokens:{channel}"
    client = await make_client(server.url, min_delay=0.05, max_delay=0.1)
    await client.connect()
    await client.subscribe(channel)
    each = 100 if server.load == 1.0 else 20
    async with server.api() as api:
        for first in range(1, 3 * each + 1, each):
            for n in range(first, first + each):
                await api.publish(channel, {"n": n}, urgent=n % 7 == 0)
                if first > 1 and n == first + each // 2:
                    await client.cut()  # with a window open, most likely
            await client.seen("subscribed", 1 + first // each)
    await client.seen("publication", 3 * each)
    found = client.publications(channel)
    assert [(one["offset"], one["data"]) for one in found] == [
        (n, {"n": n}) for n in range(1, 3 * each + 1)
    ]
    again = client.events["subscribed"][1:]
    assert [(one["was_recovering"], one["recovered"]) for one in again] == [
        (True, True)
    ] * 2


async def test_what_waits_comes_before_the_reply_to_an_unsubscribe(
    server: Server, channel: str
) -> None:
    client = await server.raw()
    channel = f"typing:{channel}"
    await client.subscribe(channel)
    async with server.api() as api:
        for n in range(3):
            await api.call("publish", {"channel": channel, "data": n})
    await client.send({"id": 101, "unsubscribe": {"channel": channel}})
    seen = [await client.message() for _ in range(4)]
    assert [message["push"]["pub"]["data"] for message in seen[:3]] == [0, 1, 2]
    assert seen[3] == {"id": 101, "unsubscribe": {}}


async def test_what_waits_is_written_before_the_server_ends(
    ended: Server, channel: str
) -> None:
    channel = f"tokens:{channel}"
    client = await ended.raw()
    await client.subscribe(channel)
    async with ended.api() as api, asyncio.TaskGroup() as group:
        for n in range(20):
            group.create_task(api.publish(channel, n))
    ending = asyncio.create_task(ended.terminate())
    offsets = [(await client.push())["pub"]["offset"] for _ in range(20)]
    assert offsets == list(range(1, 21))
    assert (await client.closed()).code == 3001
    assert await ending == 0

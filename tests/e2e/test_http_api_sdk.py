"""Official SDKs as the server API acts on their connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import centrifuge
import pytest

from tests.harness.api import Api
from tests.harness.server import Server

MakeClient = Callable[..., Any]


async def enter(server: Server, make_client: MakeClient) -> tuple[Any, dict[str, str]]:
    """Connect; return the client and what names it in the API (nobody has a token)."""
    client = await make_client(server.url)
    await client.connect()
    return client, {"user": "", "client": client.events["connected"][-1]["id"]}


async def test_unsubscribe_is_for_good(
    server: Server, api: Api, make_client: MakeClient, channel: str
) -> None:
    client, target = await enter(server, make_client)
    await client.subscribe(channel)
    await api.call("unsubscribe", {**target, "channel": channel})
    (event,) = await client.seen("unsubscribed", 1)
    assert (event["code"], event["reason"]) == (2000, "server unsubscribe")
    await api.publish(channel, 1)
    # It may come back by itself, and then recovers nothing it was not told of.
    subscribed = await client.subscribe(channel)
    assert subscribed["offset"] == 1 or subscribed["recovered"]
    assert client.events["connecting"] == [client.events["connecting"][0]]


@pytest.mark.parametrize(
    ("disconnect", "code"),
    [
        (None, 3503),
        ({"code": 3505, "reason": "over"}, 3505),
        ({"code": 4500, "reason": "over"}, 4500),
    ],
)
async def test_disconnect_for_good(
    server: Server,
    api: Api,
    make_client: MakeClient,
    disconnect: Any,
    code: int,
) -> None:
    client, target = await enter(server, make_client)
    await api.call("disconnect", {**target, "disconnect": disconnect})
    (event,) = await client.seen("disconnected", 1)
    assert event["code"] == code
    assert event["reason"] == ("over" if disconnect else "force disconnect")


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        ("disconnect", {"disconnect": {"code": 3000, "reason": "again"}}, 3000),
        ("disconnect", {"disconnect": {"code": 4499, "reason": "again"}}, 4499),
        ("refresh", {"expired": True}, 3005),
        ("refresh", {"expire_at": 1}, 3005),
    ],
)
async def test_disconnect_and_come_back(
    server: Server,
    api: Api,
    make_client: MakeClient,
    channel: str,
    method: str,
    fields: dict[str, Any],
    code: int,
) -> None:
    client, target = await enter(server, make_client)
    await client.subscribe(channel)
    await api.publish(channel, 1)
    await client.seen("publication", 1)
    await api.call(method, {**target, **fields})
    await api.publish(channel, 2)
    await client.seen("connected", 2)
    await client.seen("publication", 2)
    assert [event["code"] for event in client.events["connecting"]] == [0, code]
    assert client.offsets(channel) == [1, 2]


class Events(centrifuge.ClientEventHandler):
    """The events that a client gets for its server-side subscriptions."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def on_connected(self, ctx: Any) -> None:
        self.seen.put_nowait(("connected", ctx))

    async def on_subscribed(self, ctx: Any) -> None:
        self.seen.put_nowait(("subscribed", ctx))

    async def on_unsubscribed(self, ctx: Any) -> None:
        self.seen.put_nowait(("unsubscribed", ctx))

    async def on_publication(self, ctx: Any) -> None:
        self.seen.put_nowait(("publication", ctx))

    async def next(self, event: str) -> Any:
        """Return the next event, which must be of this kind."""
        async with asyncio.timeout(10):
            kind, ctx = await self.seen.get()
        assert kind == event, ctx
        return ctx


async def test_server_side_subscription(server: Server, api: Api, channel: str) -> None:
    events = Events()
    client = centrifuge.Client(server.url, events=events, proxy=None)
    await client.connect()
    target = {"user": "", "client": (await events.next("connected")).client}
    await api.publish(channel, 1)
    body = {**target, "channel": channel, "data": {"a": 1}}
    await api.call("subscribe", body)
    subscribed = await events.next("subscribed")
    assert (subscribed.channel, subscribed.data) == (channel, {"a": 1})
    assert subscribed.recoverable and subscribed.stream_position.offset == 1
    await api.publish(channel, 2)
    publication = await events.next("publication")
    assert (publication.channel, publication.pub.data) == (channel, 2)
    await api.call("unsubscribe", {**target, "channel": channel})
    assert (await events.next("unsubscribed")).channel == channel
    await client.disconnect()
    await asyncio.gather(*client._background_tasks, return_exceptions=True)

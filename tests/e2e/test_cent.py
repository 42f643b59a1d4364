"""The official server library publishes, broadcasts and reads history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import cent
import pytest

from tests.harness.server import Server

Call = Callable[..., Awaitable[Any]]


@pytest.fixture(params=["sync", "async"])
async def call(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Call]:
    """Call a method of cent's client with a request object."""
    url, key = server.api_url, server.key
    if request.param == "async":
        client = cent.AsyncClient(url, key)

        async def call_async(method: str, body: Any) -> Any:
            return await getattr(client, method)(body)

        yield call_async
        await client.close()
        return
    blocking = cent.Client(url, key)

    async def call_sync(method: str, body: Any) -> Any:
        return await asyncio.to_thread(getattr(blocking, method), body)

    yield call_sync
    blocking.close()


async def test_publish_reaches_a_subscriber(
    server: Server, call: Call, channel: str
) -> None:
    async with await server.raw() as subscriber:
        position = await subscriber.subscribe(channel)
        first = await call(
            "publish",
            cent.PublishRequest(
                channel=channel, data={"text": "ß 漢字"}, tags={"kind": "token"}
            ),
        )
        second = await call("publish", cent.PublishRequest(channel=channel, data=[2]))
        assert (first.offset, first.epoch) == (1, position["epoch"])
        assert (second.offset, second.epoch) == (2, position["epoch"])
        one, two = await subscriber.publications(channel, 2)
    assert (one["offset"], one["data"], one["tags"]) == (
        1,
        {"text": "ß 漢字"},
        {"kind": "token"},
    )
    assert (two["offset"], two["data"]) == (2, [2])
    assert "tags" not in two


async def test_publish_with_an_idempotency_key_publishes_once(
    call: Call, channel: str
) -> None:
    request = cent.PublishRequest(channel=channel, data="once", idempotency_key="k")
    offsets = [(await call("publish", request)).offset for _ in range(3)]
    assert offsets == [1, 1, 1]
    page = await call("history", cent.HistoryRequest(channel=channel, limit=-1))
    assert [publication.data for publication in page.publications] == ["once"]


async def test_broadcast_answers_for_each_channel_in_order(
    server: Server, call: Call, channel: str
) -> None:
    left, right = f"{channel}-left", f"{channel}-right"
    await call("publish", cent.PublishRequest(channel=right, data=0))
    async with await server.raw() as subscriber:
        await subscriber.subscribe(left)
        await subscriber.subscribe(right)
        result = await call(
            "broadcast",
            cent.BroadcastRequest(
                channels=[left, "nowhere:x", right], data={"n": 1}, tags={"a": "b"}
            ),
        )
        first, refused, last = result.responses
        assert first.error is None and first.result.offset == 1
        assert (refused.error.code, refused.error.message) == (102, "unknown channel")
        assert last.error is None and last.result.offset == 2
        # Channels have no order among themselves.
        pushes = [await subscriber.push() for _ in range(2)]
        found = {push["channel"]: push["pub"] for push in pushes}
        one, two = found[left], found[right]
    assert (one["offset"], one["data"], one["tags"]) == (1, {"n": 1}, {"a": "b"})
    assert (two["offset"], two["data"], two["tags"]) == (2, {"n": 1}, {"a": "b"})


async def test_history_pages(call: Call, channel: str) -> None:
    for n in range(1, 8):
        await call(
            "publish",
            cent.PublishRequest(channel=channel, data={"n": n}, tags={"n": str(n)}),
        )

    async def read(**options: Any) -> list[int]:
        page = await call("history", cent.HistoryRequest(channel=channel, **options))
        assert (page.offset, page.epoch) == (7, epoch)
        for publication in page.publications:
            n = publication.offset
            assert publication.data == {"n": n}
            assert publication.tags == {"n": str(n)}
        return [publication.offset for publication in page.publications]

    epoch = (await call("history", cent.HistoryRequest(channel=channel))).epoch
    assert epoch
    assert await read() == []
    assert await read(limit=-1) == [1, 2, 3, 4, 5, 6, 7]
    assert await read(limit=2, reverse=True) == [7, 6]
    since = cent.StreamPosition(offset=4, epoch=epoch)
    assert await read(limit=2, since=since) == [5, 6]
    assert await read(limit=2, since=since, reverse=True) == [3, 2]


async def test_refusals(server: Server, call: Call, channel: str) -> None:
    with pytest.raises(cent.CentApiResponseError) as refused:
        await call("publish", cent.PublishRequest(channel="nowhere:x", data=1))
    assert (refused.value.code, refused.value.message) == (102, "unknown channel")
    since = cent.StreamPosition(offset=1, epoch="old")
    with pytest.raises(cent.CentApiResponseError) as refused:
        await call(
            "history", cent.HistoryRequest(channel=channel, limit=1, since=since)
        )
    assert (refused.value.code, refused.value.message) == (
        112,
        "unrecoverable position",
    )
    stranger = cent.AsyncClient(server.api_url, "another key")
    try:
        with pytest.raises(cent.CentUnauthorizedError):
            await stranger.publish(cent.PublishRequest(channel=channel, data=1))
    finally:
        await stranger.close()

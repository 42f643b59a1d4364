"""Many publishers at once: a channel's offsets have no gap and no duplicate."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.harness.raw import RawClient
from tests.harness.server import Server

EACH = 10


def publishers_of(server: Server) -> int:
    return round(200 * server.load)


def names(channel: str, channels: int) -> list[str]:
    return [f"{channel}-{n}" for n in range(channels)]


def payloads_of(
    channel_number: int, channels: int, publishers: int
) -> set[tuple[int, int]]:
    return {
        (publisher, n)
        for publisher in range(publishers)
        for n in range(EACH)
        if (publisher + n) % channels == channel_number
    }


async def collectors(
    server: Server, channels: list[str]
) -> list[asyncio.Task[list[dict[str, Any]]]]:
    """Start a subscriber of each channel, and return when all are subscribed."""
    count = publishers_of(server) * EACH // len(channels)
    ready: list[RawClient] = []

    async def read(client: RawClient, channel: str) -> list[dict[str, Any]]:
        async with client:
            return await client.publications(channel, count, within=60.0)

    for channel in channels:
        client = await server.raw()
        await client.subscribe(channel)
        ready.append(client)
    return [
        asyncio.create_task(read(client, channel))
        for client, channel in zip(ready, channels, strict=True)
    ]


@pytest.mark.requirement("B5")
@pytest.mark.parametrize("channels", [1, 2])
async def test_http_publishers(server: Server, channel: str, channels: int) -> None:
    channel_names, publishers = names(channel, channels), publishers_of(server)
    tasks = await collectors(server, channel_names)
    told: list[dict[int, tuple[int, int]]] = [{} for _ in channel_names]

    async with server.api() as api:

        async def publish(publisher: int) -> None:
            for n in range(EACH):
                number = (publisher + n) % channels
                data = [publisher, n]
                offset = await api.publish(channel_names[number], data, within=60.0)
                assert offset not in told[number]
                told[number][offset] = (publisher, n)

        await asyncio.gather(*map(publish, range(publishers)))

    received = await asyncio.gather(*tasks)
    for number, publications in enumerate(received):
        offsets = list(range(1, publishers * EACH // channels + 1))
        assert sorted(told[number]) == offsets
        assert [pub["offset"] for pub in publications] == offsets
        assert set(told[number].values()) == payloads_of(number, channels, publishers)
        assert {pub["offset"]: tuple(pub["data"]) for pub in publications} == (
            told[number]
        )


@pytest.mark.requirement("R39", "B6", "B133")
@pytest.mark.parametrize("channels", [1, 2])
async def test_client_publishers(server: Server, channel: str, channels: int) -> None:
    channel_names, publishers = names(channel, channels), publishers_of(server)
    tasks = await collectors(server, channel_names)

    async def publish(publisher: int) -> None:
        async with await server.raw() as client:
            commands = [
                {
                    "id": 1000 + n,
                    "publish": {
                        "channel": channel_names[(publisher + n) % channels],
                        "data": [publisher, n],
                    },
                }
                for n in range(EACH)
            ]
            # All in flight at once, in one frame.
            await client.send(*commands)
            replies = [await client.message(60.0) for _ in range(EACH)]
            replies.sort(key=lambda reply: reply["id"])
            assert replies == [{"id": 1000 + n, "publish": {}} for n in range(EACH)]

    await asyncio.gather(*map(publish, range(publishers)))

    received = await asyncio.gather(*tasks)
    for number, publications in enumerate(received):
        count = publishers * EACH // channels
        assert [pub["offset"] for pub in publications] == list(range(1, count + 1))
        data = [tuple(pub["data"]) for pub in publications]
        assert set(data) == payloads_of(number, channels, publishers)
        # Publications of one connection are stored in the order it sent them.
        for publisher in range(publishers):
            own = [n for sender, n in data if sender == publisher]
            assert own == sorted(own)

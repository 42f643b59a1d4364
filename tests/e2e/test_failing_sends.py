"""Sends that fail: everything is delivered once, or has failed where it was asked.

The publisher's requests and the subscribers' connections go through fault proxies.
The order of what fails is a seed's; a *timeout* is a black hole that swallows the
bytes, and the sender gives up when they are gone, so nothing here waits for a time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.faultproxy import FaultProxy
from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

COUNT = 50
SEED = 25

# Of 50 sends, those that fail at once, and those that time out: 10 and 5 %,
# 30 and 15 %, and 80 % timeouts.
MODES = {"none": (0, 0), "some": (5, 3), "many": (15, 8), "most": (0, 40)}

server = server_with(
    {
        "STEADWIRE_CLIENT_PING_INTERVAL": "1",
        "STEADWIRE_CLIENT_PONG_TIMEOUT": "0.5",
        "STEADWIRE_SERVER_ABORT_TIMEOUT": "1",
    }
)


def drawn(mode: str) -> list[str]:
    """Return what is to happen to each send."""
    rng = random.Random(SEED)
    if mode == "every third":
        return ["", "", "answer"] * 8
    fail, late = MODES[mode]
    fates = [rng.choice(["request", "answer"]) for _ in range(fail)]
    fates += [rng.choice(["request", "answer"]) + " swallowed" for _ in range(late)]
    fates += [""] * (COUNT - len(fates))
    rng.shuffle(fates)
    return fates


class Sender:
    """Publishes through a proxy, each time over a connection of its own.

    Attributes:
        acknowledged: Payload by offset.
        failed: Payloads of the publishes that failed, and how.
    """

    def __init__(self, proxy: FaultProxy, key: str, channel: str) -> None:
        self._proxy = proxy
        self._key = key
        self._channel = channel
        self.acknowledged: dict[int, int] = {}
        self.failed: dict[int, str] = {}

    async def publish(self, n: int, fate: str) -> None:
        """Publish *n*, with its number as the idempotency key; note what came of it."""
        proxy = self._proxy
        way = proxy.up if fate.startswith("request") else proxy.down
        if fate:
            proxy.black_hole(way)
        before = way.swallowed
        async with Api(proxy.port, self._key) as api:
            asked = asyncio.create_task(
                api.publish(self._channel, n, idempotency_key=str(n))
            )
            if fate:
                while way.swallowed == before:
                    await asyncio.sleep(0)
                if fate.endswith("swallowed"):
                    asked.cancel()
                proxy.reset()
                proxy.resume()
            try:
                self.acknowledged[await asked] = n
                self.failed.pop(n, None)
            except (ConnectionError, asyncio.CancelledError):
                self.failed[n] = fate


async def joined(
    server: Server, proxy: FaultProxy, start_host: Callable[..., Any], channel: str
) -> list[SdkClient]:
    """Return a subscriber of each language, behind the proxy."""
    url = server.url.replace(f":{server.port}/", f":{proxy.port}/")
    clients = []
    for sdk in ("js-5.8.0", "python-0.7.0"):
        client = await SdkClient.create(await start_host(sdk), url)
        await client.connect()
        await client.subscribe(channel)
        clients.append(client)
    return clients


@pytest.mark.requirement("B25")
@pytest.mark.parametrize("mode", MODES)
async def test_a_publish_is_acknowledged_and_delivered_once_or_fails(
    server: Server, start_host: Callable[..., Any], channel: str, mode: str
) -> None:
    async with (
        FaultProxy(server.port, seed=SEED) as proxy,
        FaultProxy(server.port, seed=SEED) as direct,
    ):
        clients = await joined(server, direct, start_host, channel)
        sender = Sender(proxy, server.key, channel)
        lost = set()
        for n, fate in enumerate(drawn(mode), 1):
            await sender.publish(n, fate)
            if fate.startswith("request"):
                lost.add(n)
            assert (n in sender.failed) == bool(fate), "an answer that cannot be"
        assert len(sender.failed) == sum(MODES[mode])

        # The others are delivered: those acknowledged, and those of which the answer
        # was lost. Repeated with their keys, all are there once.
        first = [n for n in range(1, COUNT + 1) if n not in lost]
        for client in clients:
            await client.seen("publication", len(first))
            assert [one["data"] for one in client.publications(channel)] == first
        for n in list(sender.failed):
            await sender.publish(n, "")
        assert sender.failed == {}
        everything = [*first, *sorted(lost)]
        assert sender.acknowledged == dict(enumerate(everything, 1))
        for client in clients:
            await client.seen("publication", COUNT)
            found = client.publications(channel)
            assert [(one["offset"], one["data"]) for one in found] == list(
                enumerate(everything, 1)
            )


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param("every third", marks=pytest.mark.requirement("B3")),
        pytest.param("some", marks=[pytest.mark.slow, pytest.mark.requirement("B25")]),
        pytest.param("many", marks=[pytest.mark.slow, pytest.mark.requirement("B25")]),
        pytest.param("most", marks=[pytest.mark.slow, pytest.mark.requirement("B25")]),
    ],
)
async def test_a_send_to_a_client_fails_and_it_misses_nothing(
    server: Server, start_host: Callable[..., Any], channel: str, mode: str
) -> None:
    fates = drawn(mode)
    async with FaultProxy(server.port, seed=SEED) as proxy, server.api() as api:
        clients = await joined(server, proxy, start_host, channel)
        rounds = 0
        for n, fate in enumerate(fates, 1):
            before = proxy.down.swallowed
            if fate:
                proxy.black_hole(proxy.down)
            assert await api.publish(channel, n) == n
            if fate:  # it was sent, and is gone
                rounds += 1
                while proxy.down.swallowed == before:
                    await asyncio.sleep(0)
                proxy.reset()
                proxy.resume()
            for client in clients:
                await client.seen("subscribed", rounds + 1)
                await client.seen("publication", n)
    assert rounds == len(fates) - fates.count("") > 0
    for client in clients:
        found = client.publications(channel)
        assert [(one["offset"], one["data"]) for one in found] == [
            (n, n) for n in range(1, len(fates) + 1)
        ]
        again = client.events["subscribed"][1:]
        assert len(again) == rounds
        assert all(one["was_recovering"] and one["recovered"] for one in again)


@pytest.mark.requirement("B55")
async def test_a_close_that_never_arrives_loses_nothing(
    server: Server, start_host: Callable[..., Any], channel: str
) -> None:
    # The server closes its clients; the close frame and the end of TCP are swallowed,
    # so the server aborts, and the client finds out by itself that nobody is there.
    async with FaultProxy(server.port, seed=SEED) as proxy, server.api() as api:
        clients = await joined(server, proxy, start_host, channel)
        for n in range(1, 6):
            assert await api.publish(channel, n) == n
        for client in clients:
            await client.seen("publication", 5)
        proxy.black_hole()
        for client in clients:
            own = client.events["connected"][0]["client"]
            await api.call(
                "disconnect",
                {
                    "user": "",
                    "client": own,
                    "disconnect": {"code": 3005, "reason": "go"},
                },
            )
        for n in range(6, 11):
            assert await api.publish(channel, n) == n
        proxy.reset()
        proxy.resume()
        for client in clients:
            await client.seen("publication", 10)
            assert client.offsets(channel) == list(range(1, 11))
            (_, again) = client.events["subscribed"]
            assert again["was_recovering"] and again["recovered"]
            assert client.events["connecting"][1]["code"] == 1  # and not the server's
            assert client.events["disconnected"] == []

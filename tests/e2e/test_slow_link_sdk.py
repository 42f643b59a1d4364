"""Official SDKs that have missed much and have a slow link: all of it comes in the end.

The SDKs wait 5 s for a reply. What was missed here takes 6 s to 30 s on the link, so it
cannot be in the replies; and the link carries it at its own speed, so that a write may
last as long as it likes while it makes progress.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faultproxy import FaultProxy
from tests.harness.fixtures import server_with
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

SIZE = 10_000

# A segment on the loopback is larger than all that the proxy's socket takes at once, so
# the kernel finds the peer's window closed from beginning to end, and would abort the
# connection after 30 s, which the slowest rate takes. Segments of a network are small.
server = server_with({"STEADWIRE_SERVER_ABORT_TIMEOUT": "120"})

# Bytes. What waits in the proxy counts as delivered for the server: it is little.
BUFFER = 4096


def payload(channel: str, n: int) -> str:
    return f"{channel} {n} ".ljust(SIZE, "abcdefghij"[n % 10])


@pytest.mark.parametrize("sdk", ["js-5.8.0", "python-0.7.0"])
@pytest.mark.parametrize("channels", [1, 10])
@pytest.mark.parametrize("rate", [20, 30, 50, 100])
@pytest.mark.slow
async def test_60_publications_over_a_slow_link(
    server: Server,
    start_host: Callable[..., Any],
    channel: str,
    rate: int,
    channels: int,
    sdk: str,
) -> None:
    names = [f"{channel}-{number}" for number in range(channels)]
    await recover_all(server, await start_host(sdk), names, 60 // channels, rate)


@pytest.mark.slow
async def test_18_publications_over_a_slow_link(
    server: Server, start_host: Callable[..., Any], channel: str
) -> None:
    names = [f"{channel}-{number}" for number in range(9)]
    await recover_all(server, await start_host("js-5.8.0"), names, 2, 30)


async def recover_all(
    server: Server, host: Any, channels: list[str], count: int, rate: int
) -> None:
    """Miss *count* publications in each channel and recover them at *rate* KB/s."""
    async with (
        server.api() as api,
        FaultProxy(server.port, seed=rate, buffer=BUFFER) as proxy,
    ):
        url = server.url.replace(str(server.port), str(proxy.port))
        client = await SdkClient.create(host, url)
        await client.connect()
        for channel in channels:
            await client.subscribe(channel)
        await client.disconnect()
        for n in range(1, count + 1):
            for channel in channels:
                assert await api.publish(channel, payload(channel, n)) == n

        proxy.throttle(rate * 1000)
        await client.connect()
        total = count * len(channels)
        await client.seen("publication", total, within=120.0)
        # Live from here on.
        for channel in channels:
            assert await api.publish(channel, "live") == count + 1
        await client.seen("publication", total + len(channels), within=60.0)

    for channel in channels:
        expected = [
            {"offset": n, "data": payload(channel, n), "tags": {}}
            for n in range(1, count + 1)
        ]
        live = {"offset": count + 1, "data": "live", "tags": {}}
        assert client.publications(channel) == [*expected, live]
    subscribed = client.events["subscribed"]
    flags = [(event["was_recovering"], event["recovered"]) for event in subscribed]
    no, yes = (False, False), (True, True)
    assert flags == [no] * len(channels) + [yes] * len(channels)
    assert len(client.events["connected"]) == 2
    assert len(client.events["disconnected"]) == 1  # the one that was asked for
    assert client.events["error"] == client.events["sub_error"] == []

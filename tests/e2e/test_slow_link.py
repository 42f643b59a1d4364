"""Much to recover over a slow link: it takes its time, and nothing is closed."""

from __future__ import annotations

import pytest

from tests.faultproxy import FaultProxy
from tests.harness.raw import RawClient
from tests.harness.server import Server

COUNT = 300
SIZE = 60_000

# Bytes per second; 18 MB take some six seconds.
RATE = 3_000_000


def payload(n: int) -> str:
    return f"{n:06d}" + chr(ord("a") + n % 26) * (SIZE - 6)


@pytest.mark.requirement("B75")
async def test_recovery_over_a_slow_link(server: Server, channel: str) -> None:
    async with server.api() as api, FaultProxy(server.port, seed=300) as proxy:
        epoch = (await api.history(channel))["epoch"]
        for n in range(1, COUNT + 1):
            assert await api.publish(channel, payload(n)) == n

        proxy.throttle(RATE)
        async with await RawClient.open(proxy.port) as client:
            await client.connect()
            reply = await client.subscribe(channel, recover=True, offset=0, epoch=epoch)
            assert reply["was_recovering"] is True and reply["recovered"] is True
            # The reply has at most 16 KiB of them: the link may be slow.
            assert "publications" not in reply
            # Live ones, published while the old ones are still under way.
            for n in range(COUNT + 1, COUNT + 4):
                assert await api.publish(channel, f"live {n}") == n
            publications = await client.publications(channel, COUNT + 3, within=60.0)

    assert [pub["offset"] for pub in publications] == list(range(1, COUNT + 4))
    for publication in publications[:COUNT]:
        assert publication["data"] == payload(publication["offset"])
    live = [pub["data"] for pub in publications[COUNT:]]
    assert live == [f"live {n}" for n in range(COUNT + 1, COUNT + 4)]

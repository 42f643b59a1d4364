"""A slow reader's full queue: pushes without an offset make room for the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.metrics import scrape
from tests.harness.server import Server

KEPT = {"history_size": 100, "history_ttl": 300, "allow_recovery": True}
SETTINGS = {
    "STEADWIRE_CLIENT_QUEUE_SIZE": str(128 * 1024),
    "STEADWIRE_CLIENT_RECOVERY_SIZE": str(64 * 1024),
    "STEADWIRE_CLIENT_WRITE_TIMEOUT": "60",
    "STEADWIRE_SERVER_SEND_BUFFER": str(16 * 1024),
    "STEADWIRE_CHANNELS_NAMESPACES": json.dumps(
        [
            {"name": "fleeting"},
            {"name": "kept", **KEPT},
        ]
    ),
}
SIZE = 10_000
COUNT = 12  # with an offset: 120 KB, which fit into the queue alone


async def displaced(api: Api) -> int:
    return int((await scrape(api))["messages_displaced_total"])


async def publish(api: Api, label: str) -> None:
    """Publish without an offset."""
    data = label.ljust(SIZE)
    assert await api.call("publish", {"channel": "fleeting:a", "data": data}) == {}


@pytest.mark.requirement("L7", "B62", "B61")
async def test_publications_with_offsets_find_room_in_a_queue_full_of_others(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server(SETTINGS).start()
    async with server.api() as api:
        slow = await server.raw(receive_buffer=4096)
        for channel in ("kept:a", "fleeting:a"):
            await slow.subscribe(channel)

        fleeting = 0
        while not await displaced(api):
            await publish(api, f"{fleeting:06d}")
            fleeting += 1
            assert fleeting < 1000
        for _ in range(10):  # full again
            await publish(api, f"{fleeting:06d}")
            fleeting += 1
        for n in range(1, COUNT + 1):
            assert await api.publish("kept:a", str(n).ljust(SIZE)) == n
        lost = await displaced(api)

        # It goes on, answers, and has every offset; of the others, what was left.
        reply = await slow.request(history={"channel": "kept:a", "limit": 0})
        assert reply["history"]["offset"] == COUNT
        pushes = [message["push"] for message in slow.pushes]
        kept = [p["pub"]["offset"] for p in pushes if p["channel"] == "kept:a"]
        assert kept == list(range(1, COUNT + 1))
        got = [p["pub"]["data"] for p in pushes if p["channel"] == "fleeting:a"]
        assert got == sorted(got)
        assert len(got) == fleeting - lost
        assert len(pushes) == len(kept) + len(got)
        assert (await scrape(api)).labels("connections")["connected"] == 1
        assert await displaced(api) == lost


@pytest.mark.requirement("L7", "B62", "L21")
async def test_only_what_must_not_be_dropped_closes_a_slow_reader(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server(SETTINGS).start()
    async with server.api() as api:
        slow = await server.raw(receive_buffer=4096)
        position = await slow.subscribe("kept:a", positioned=True, recoverable=True)
        await slow.subscribe("fleeting:a")
        for n in range(100):  # many times what the queue holds
            await publish(api, str(n))
        assert (await scrape(api)).labels("connections")["connected"] == 1
        lost = await displaced(api)
        assert lost > 0
        top = 0
        while not (await scrape(api)).labels("connections")["closing"]:
            top = await api.publish("kept:a", str(top + 1).ljust(SIZE))
        closed = await slow.closed()
        assert (closed.code, closed.reason) == (3008, "slow")
        pushes = [message["push"] for message in slow.pushes]
        read = sum(push["channel"] == "kept:a" for push in pushes)
        slow.tcp.close()
        async with await server.raw() as again:
            since: dict[str, Any] = {"offset": read, "epoch": position["epoch"]}
            reply = await again.subscribe("kept:a", recover=True, **since)
            assert reply["recovered"]
            missed = reply.get("publications", [])
            missed += await again.publications("kept:a", top - read - len(missed))
            assert [one["offset"] for one in missed] == list(range(read + 1, top + 1))

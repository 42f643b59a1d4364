"""A hundred clients that do not read, 10,000 publications: nobody else notices.

What waits for them is bounded by their queues, each is closed for it once, and all of
them recover when they read again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import framings
from tests.harness.metrics import scrape
from tests.harness.raw import CLOSE, Closed, RawClient
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

framing = framings(slow=True)

MIB = 1024 * 1024
SLOW = 100
COUNT = 10_000
PUBLISHERS = 8
TEXT = "x" * 500

# Bytes of a client's queue: the default, named since the bound below depends on it.
QUEUE = MIB
CACHE = 8 * MIB

# Bytes that the process may grow beyond the queues and the cache: what is on its way to
# the store, fragmentation.
SLACK = 32 * MIB

SETTINGS = {
    "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps({"history_size": 2 * COUNT}),
    "STEADWIRE_CLIENT_RECOVERY_LIMIT": str(COUNT),
    "STEADWIRE_CLIENT_QUEUE_SIZE": str(QUEUE),
    "STEADWIRE_STORE_CACHE_SIZE": str(CACHE),
    # A write may take long: every queue is to be full before anybody is closed.
    "STEADWIRE_CLIENT_WRITE_TIMEOUT": "300",
    "STEADWIRE_CLIENT_PING_INTERVAL": "200",
    "STEADWIRE_CLIENT_HEARTBEAT_TIMEOUT": "400",
    "STEADWIRE_SERVER_ABORT_TIMEOUT": "300",
    "STEADWIRE_SERVER_SEND_BUFFER": "32768",
}


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.requirement("B15", "R21")
async def test_a_hundred_slow_consumers(
    make_server: Callable[..., Server],
    start_host: Callable[..., Any],
    channel: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = await make_server(SETTINGS).start()
    healthy = []
    for sdk in ("js-5.8.0", "python-0.7.0"):
        host = await start_host(sdk, own_process=True)
        for _ in range(2):
            client = await SdkClient.create(host, server.url, ping_delay=300.0)
            await client.connect()
            await client.subscribe(channel)
            healthy.append(client)
    slow = [await server.raw(receive_buffer=16 * 1024) for _ in range(SLOW)]
    for client in slow:
        epoch = (await client.subscribe(channel))["epoch"]
    async with server.api() as api:
        before = await scrape(api)
        memory = server.memory()
        published, most = await publish(api, channel, server)

        # Everybody else has everything, once and in order, over one connection.
        expected = [(n, published[n]) for n in range(1, COUNT + 1)]
        for client in healthy:
            await client.seen("publication", COUNT, within=60.0)
            found = client.publications(channel)
            assert [(one["offset"], one["data"]) for one in found] == expected
            assert len(client.events["connecting"]) == 1

        grown = most - memory
        with capsys.disabled():
            print(f"\nslow consumers: the process grew by {grown / MIB:.1f} MiB")
        assert grown < SLOW * QUEUE + CACHE + SLACK

        # Each slow one was closed for it, once, and nobody for anything else.
        found = [await rest(client) for client in slow]
        ended = (await scrape(api)).since(before)
        closes = {name: n for name, n in ended.items() if name.startswith("closes")}
        assert closes == {"closes_total{3008}": SLOW}
        assert "connections_opened_total" not in ended
        for one in found:
            await recover(server, channel, epoch, one, expected)


async def publish(
    api: Api, channel: str, server: Server
) -> tuple[dict[int, dict[str, Any]], int]:
    """Publish everything; return it by offset, and the most memory that was seen."""
    published: dict[int, dict[str, Any]] = {}
    most = 0

    async def some(publisher: int) -> None:
        nonlocal most
        for n in range(COUNT // PUBLISHERS):
            data = {"publisher": publisher, "n": n, "text": TEXT}
            published[await api.publish(channel, data)] = data
            if len(published) % 100 == 0:
                most = max(most, server.memory())

    async with asyncio.TaskGroup() as group:
        for publisher in range(PUBLISHERS):
            group.create_task(some(publisher))
    assert sorted(published) == list(range(1, COUNT + 1))
    return published, most


Publications = list[tuple[int, dict[str, Any]]]


async def rest(client: RawClient) -> Publications:
    """Read what the kernel has kept, up to the close."""
    found: Publications = []
    try:
        while True:
            found += await read(client)
    except Closed as closed:
        assert (closed.code, closed.reason) == (3008, "slow")
    assert 0 < len(found) < COUNT
    return found


async def read(client: RawClient) -> Publications:
    """Read a frame: a message at a time would take minutes for a million of them."""
    frame = await client.frame()
    if frame.opcode == CLOSE:
        code = int.from_bytes(frame.payload[:2], "big")
        raise Closed(code, frame.payload[2:].decode())
    pushes = [json.loads(line)["push"] for line in frame.payload.split(b"\n")]
    return [(push["pub"]["offset"], push["pub"]["data"]) for push in pushes]


async def recover(
    server: Server,
    channel: str,
    epoch: str,
    found: Publications,
    expected: Publications,
) -> None:
    """Come back, and have everything once and in order."""
    async with await server.raw() as client:
        reply = await client.subscribe(
            channel, recover=True, offset=found[-1][0], epoch=epoch
        )
        assert reply["was_recovering"] is True and reply["recovered"] is True
        found += [(pub["offset"], pub["data"]) for pub in reply["publications"]]
        while len(found) < COUNT:
            found += await read(client)
    assert found == expected

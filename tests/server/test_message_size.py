"""Message sizes: memory stays bounded, whatever a peer offers or sends."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.raw import TEXT, Closed, RawClient
from tests.server.running import close_frame

MiB = 1 << 20
OFFER = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}


async def cost_of_clients(
    launch: Callable[..., Any], headers: dict[str, str], count: int
) -> int:
    """Return the bytes that a fresh server's memory grows by with *count* clients."""
    process = launch()
    await process.ready()
    # The first few pay for what is imported and cached once.
    warm = [await talk(process, headers) for _ in range(20)]
    before = process.memory()
    clients = await asyncio.gather(*(talk(process, headers) for _ in range(count)))
    cost: int = process.memory() - before
    for client in (*warm, *clients):
        client.reset()
    return cost


async def talk(process: Any, headers: dict[str, str]) -> RawClient:
    client: RawClient = await process.open("/echo", headers=headers)
    await client.send_text("x" * 1000)
    assert (await client.frame()).payload == b"x" * 1000
    return client


async def test_offering_deflate_costs_no_memory(launch: Any) -> None:
    without = await cost_of_clients(launch, {}, 200)
    offering = await cost_of_clients(launch, OFFER, 200)
    # Accepted, it would be 100 KB for each of them: 20 MB.
    assert offering < without + 3 * MiB
    assert without < 200 * 100_000


def bomb(size: int) -> bytes:
    """Return *size* zero bytes as the payload of a compressed message."""
    deflate = zlib.compressobj(9, wbits=-15)
    data = b"".join(deflate.compress(bytes(MiB)) for _ in range(size // MiB))
    return (data + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("pieces", [1, 50])
async def test_a_deflate_bomb(launch: Any, deflate: bool, pieces: int) -> None:
    """60 MB in 60 KB, in one frame or in fifty; not even for a moment."""
    process = launch(deflate=deflate)
    await process.ready()
    (await talk(process, {})).reset()
    before = process.memory("VmHWM")
    data = bomb(60 * MiB)
    assert len(data) < 65536
    step = -(-len(data) // pieces)
    async with await process.open("/echo", headers=OFFER) as client:
        assert ("sec-websocket-extensions" in client.headers) is deflate
        try:
            for start in range(0, len(data), step):
                await client.send_frame(
                    TEXT if start == 0 else 0,
                    data[start : start + step],
                    fin=start + step >= len(data),
                    rsv=4 if start == 0 else 0,
                )
        except ConnectionError:
            pytest.fail("reset before the close frame could be read")
        assert (await close_frame(client))[0] == (1009 if deflate else 1002)
    await process.freed()
    assert process.memory("VmHWM") - before < 5 * MiB


async def test_a_bomb_of_small_messages(launch: Any) -> None:
    """Each within the limit; what the application does not take is not read."""
    process = launch(deflate=True, message_size=MiB)
    await process.ready()
    (await talk(process, {})).reset()
    before = process.memory("VmHWM")
    data = bomb(MiB)
    async with await process.open("/flood", headers=OFFER) as client:
        frame = struct.pack("!BBHI", 0xC1, 0xFE, len(data), 0) + data
        sending = asyncio.create_task(send_until_blocked(client, frame * 60))
        await sending
        await process.freed(40.0)
    # Its queue of ten messages, and one under way.
    assert process.memory("VmHWM") - before < 24 * MiB


async def send_until_blocked(client: RawClient, data: bytes) -> None:
    try:
        async with asyncio.timeout(1.0):
            await client.tcp.send(data)
    except (TimeoutError, ConnectionError, Closed):
        pass
    client.reset()

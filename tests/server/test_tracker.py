"""Connections that say nothing, and descriptors that run out (L20, G7)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness.server import Server
from tests.harness.sockets import TcpClient
from tests.server.running import until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
HEAD = b"GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\n"


@contextlib.contextmanager
def descriptors_left(server: Server, left: int) -> Iterator[None]:
    """Let the server open only so many descriptors more."""
    process = server.process
    _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (server.descriptors() + left, hard))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))


async def ended(clients: list[TcpClient]) -> None:
    await until(lambda: all(c.ended() for c in clients), 30.0, "cut off")


async def test_a_connection_without_a_request_is_cut_off(server: Any) -> None:
    # 5 s after the accept, whatever came meanwhile; all of them at once.
    sent = [b"", b"G", HEAD, PREFACE[:10], PREFACE, PREFACE + PREFACE[24:] * 3]
    clients = [await TcpClient.connect(server.port) for _ in sent]
    for client, data in zip(clients, sent, strict=True):
        await client.send(data)

    async def trickle(client: TcpClient) -> None:
        with contextlib.suppress(ConnectionError):
            for byte in HEAD:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.2)

    slow = await TcpClient.connect(server.port)
    trickling = asyncio.ensure_future(trickle(slow))
    await until(lambda: server.sockets() == 0, 30.0, "all are cut off")
    trickling.cancel()
    for client in (*clients, slow):
        client.close()


async def test_at_the_limit_the_longest_silent_connection_is_cut_off(
    launch: Any,
) -> None:
    process = launch(silent=3)
    await process.ready()
    async with await process.open("/echo") as used:
        silent = [await TcpClient.connect(process.port) for _ in range(3)]
        await until(lambda: process.sockets() == 4, 30.0, "three and one")
        silent.append(await TcpClient.connect(process.port))
        await ended(silent[:1])
        # A connection that sends a request at once is served all the same.
        async with await process.open("/echo") as late:
            await ended(silent[:2])
            assert not silent[2].ended() and not silent[3].ended()
            await late.send_text("hi")
            assert (await late.frame()).payload == b"hi"
        # A WebSocket is not silent, however long it sends nothing.
        silent += [await TcpClient.connect(process.port) for _ in range(20)]
        await ended(silent[:20])
        await used.send_text("hi")
        assert (await used.frame()).payload == b"hi"
    for client in silent:
        client.close()
    await process.logged("cause=silent")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("left", [5, 60])
async def test_descriptors_run_out_and_come_back(
    make_server: Callable[..., Server], tmp_path: Path, loop: str, left: int
) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server = make_server()
    if loop == "asyncio":
        # In its working directory, and so found first.
        (tmp_path / "server0" / "uvloop.py").write_text("raise ImportError\n")
    server.start_blocking()
    async with await server.raw() as bystander:
        await bystander.subscribe("ch")
        clients = []
        with descriptors_left(server, left):
            for _ in range(150):
                clients.append(await TcpClient.connect(server.port))
            await until(lambda: any(c.ended() for c in clients), 30.0, "refused")
            # A client connected before is served, and the store has its descriptors.
            for number in range(1, 4):
                await bystander.publish("ch", number)
                [publication] = await bystander.publications("ch", 1)
                assert publication["offset"] == number
        for client in clients:
            client.close()
        async with await server.raw() as fresh:
            assert await fresh.publish("ch", 4) == {}
        await bystander.publications("ch", 1)
    await server.logged('"cause": "descriptors"')
    assert server.output().count('"cause": "descriptors"') == 1
    assert "Traceback" not in server.output()
    assert server.running

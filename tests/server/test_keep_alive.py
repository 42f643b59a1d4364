"""Idle connections end when the setting says, and no request is lost by that."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.process import stopped
from tests.harness.server import Server
from tests.harness.sockets import TcpClient
from tests.server.running import Process, until

KEEP_ALIVE = 0.3
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answered(tcp: TcpClient) -> bool:
    """Return whether an answer comes, and not the end."""
    async with asyncio.timeout(10.0):
        try:
            head, _ = await tcp.read_answer()
        except (EOFError, ConnectionError):
            return False
        return head.startswith(b"HTTP/1.1 200")


async def test_it_ends_after_the_setting(launch: Callable[..., Process]) -> None:
    server = launch(keep_alive=KEEP_ALIVE)
    await server.ready()
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        started = time.monotonic()
        await tcp.send(GET)
        assert await answered(tcp)
        # 5 s is what it was without a setting.
        await until(tcp.ended, 4.0, "closed")
        assert time.monotonic() - started >= KEEP_ALIVE


async def test_it_stays_for_as_long_as_it_is_used(
    launch: Callable[..., Process],
) -> None:
    """Each request starts the time anew, and a head in pieces is a request."""
    server = launch(keep_alive=KEEP_ALIVE)
    await server.ready()
    async with asyncio.timeout(60.0):
        while not await used_in_time(server):
            pass


async def used_in_time(server: Process) -> bool:
    """Use a connection four times; tell whether all of it was in time.

    What a machine that stalls sends when the time is over is rightly not answered.
    """
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        before = time.monotonic()
        for _ in range(4):
            await asyncio.sleep(KEEP_ALIVE / 2)
            with contextlib.suppress(ConnectionError):
                await tcp.send(GET[:7])
            late = time.monotonic() - before >= KEEP_ALIVE
            await asyncio.sleep(1.5 * KEEP_ALIVE)
            before = time.monotonic()
            with contextlib.suppress(ConnectionError):
                await tcp.send(GET[7:])
            if not await answered(tcp):
                assert late, "it ended before its time"
                return False
    return True


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_request_that_was_sent_before_the_close_is_answered(
    make_server: Callable[..., Server], tmp_path: Path, loop: str
) -> None:
    """The time is over when the server sees it; it was there before it closed.

    The server is stopped across the boundary, so that the end of the time and the
    request are there together.
    """
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server = make_server({"STEADWIRE_SERVER_KEEP_ALIVE": str(KEEP_ALIVE)})
    if loop == "asyncio":
        # In its working directory, and so found first.
        (tmp_path / "server0" / "uvloop.py").write_text("raise ImportError\n")
    server.start_blocking()
    request = GET.replace(b"/ ", b"/health/live ")
    for late in (False, True, False, True):
        async with asyncio.timeout(60.0):
            while not await stopped_across(server, request, late=late):
                pass


async def stopped_across(server: Server, request: bytes, *, late: bool) -> bool:
    """Stop the server across the end of the time; tell whether it had not come yet."""
    tcps = [await TcpClient.connect(server.port) for _ in range(20)]
    for tcp in tcps:
        await tcp.send(request)
        assert await answered(tcp)
    with stopped(server.process.pid):
        await asyncio.sleep(1.2 * KEEP_ALIVE if late else 0)
        open_ones = [tcp for tcp in tcps if not tcp.ended()]
        for tcp in open_ones:
            await tcp.send(request)
        await asyncio.sleep(0 if late else 1.2 * KEEP_ALIVE)
    assert [await answered(tcp) for tcp in open_ones] == [True] * len(open_ones)
    for tcp in tcps:
        tcp.close()
    return bool(open_ones)


async def test_a_shutdown_answers_what_was_sent_before_it(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server().start()
    tcps = [await TcpClient.connect(server.port) for _ in range(20)]
    request = GET.replace(b"/ ", b"/health/live ")
    for tcp in tcps:
        await tcp.send(request)
        assert await answered(tcp)
    with stopped(server.process.pid):
        for tcp in tcps:
            await tcp.send(request)
        server.process.send_signal(signal.SIGTERM)
    for tcp in tcps:
        async with asyncio.timeout(10.0):
            head, _ = await tcp.read_answer()
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503"))
        # One that was read in the turn before the signal is not told of the close.
        assert (b"connection: close" in head) != (b"keep-alive: " in head)
    for tcp in tcps:
        await until(tcp.ended, 30.0, "closed")
        tcp.close()
    await until(lambda: not server.running, 30.0, "ended")


async def test_a_shutdown_closes_after_an_answer_that_had_begun(
    launch: Callable[..., Process],
) -> None:
    """Its head says that the connection stays."""
    server = launch(keep_alive=60.0, shutdown_timeout=60.0)
    await server.ready()
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        await tcp.send(GET.replace(b"/ ", b"/parts "))
        assert b"keep-alive: " in await tcp.read_until(b"\r\n\r\n")
        assert await tcp.read_exactly(4) == b"one,"
        server.signal(signal.SIGTERM)
        assert await tcp.read_exactly(3) == b"two"
        await until(tcp.ended, 30.0, "closed")
    assert await server.ended(10.0) == 0

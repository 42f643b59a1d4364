"""The process: addresses, signals, deadlines and failed starts."""

from __future__ import annotations

import signal
import socket
import time
from typing import Any

import pytest

from tests.harness.ports import free_port
from tests.harness.sockets import TcpClient
from tests.server.running import close_frame, until


@pytest.mark.requirement("R49")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal(launch: Any, number: signal.Signals) -> None:
    """Nobody is accepted any more, clients are told, the store closes; status 0."""
    process = launch()
    await process.ready()
    idle = await TcpClient.connect(process.port)
    clients = [await process.open("/echo") for _ in range(3)]
    process.signal(number)
    for client in clients:
        assert await close_frame(client) == (3001, "shutdown")
    with pytest.raises(ConnectionRefusedError):
        await TcpClient.connect(process.port)
    with pytest.raises((EOFError, ConnectionError)):
        await idle.read_exactly(1)
    for each in clients:
        each.tcp.close()
    idle.close()
    assert await process.ended(10) == 0
    assert process.lines[1:] == ["draining 3", "drained", "store closed"]
    assert process.errors == []


async def test_a_client_that_ignores_the_shutdown(launch: Any) -> None:
    """It is aborted in time for the store to close in order."""
    process = launch(shutdown_timeout=4.0)
    await process.ready()
    client = await process.open("/echo", receive_buffer=4096)
    blocked = await process.open("/flood_for_ever", receive_buffer=4096)
    await blocked.send_text("go")
    process.signal(signal.SIGTERM)
    assert await process.ended(30) == 0
    assert process.lines[-1] == "store closed"
    client.reset()
    blocked.reset()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal(launch: Any, number: signal.Signals) -> None:
    process = launch(fault="drain", shutdown_timeout=60.0)
    await process.ready()
    process.signal(signal.SIGTERM)
    await until(lambda: len(process.lines) > 1, 30, "draining")
    process.signal(number)
    assert await process.ended(30) == 128 + number


async def test_a_second_signal_while_the_event_loop_is_blocked(launch: Any) -> None:
    process = launch(fault="hang", shutdown_timeout=60.0)
    await process.ready()
    process.signal(signal.SIGTERM)
    await until(lambda: len(process.lines) > 1, 30, "draining")
    process.signal(signal.SIGTERM)
    assert await process.ended(30) == 143


@pytest.mark.parametrize("fault", ["drain", "hang"])
async def test_the_deadline(launch: Any, fault: str) -> None:
    process = launch(fault=fault, shutdown_timeout=1.0)
    await process.ready()
    process.signal(signal.SIGTERM)
    assert await process.ended(30) == 1
    assert process.errors == ["steadwire: shutdown took longer than 1 s"]


async def test_a_drain_that_fails(launch: Any) -> None:
    """The store is closed all the same, and the failure is not hidden."""
    process = launch(fault="broken")
    await process.ready()
    process.signal(signal.SIGTERM)
    assert await process.ended(10) == 1
    assert process.lines[1:] == ["draining 0", "store closed"]
    assert process.errors[-1] == "OSError: disk full"


@pytest.mark.requirement("R49")
async def test_the_drain_time(launch: Any) -> None:
    """The listener is open while it lasts; a second signal ends it, a third all."""
    process = launch(drain_time=60.0)
    await process.ready()
    client = await process.open("/echo")
    process.signal(signal.SIGTERM)
    await until(lambda: len(process.lines) > 1, 30, "the drain time")
    assert (await process.state())["open"] == 1  # still served, with a new connection
    process.signal(signal.SIGINT)
    assert await close_frame(client) == (3001, "shutdown")
    with pytest.raises(ConnectionRefusedError):
        await TcpClient.connect(process.port)
    client.tcp.close()
    assert await process.ended(10) == 0
    assert process.lines[1:] == [
        *("sending away 1", "sent away", "draining 1", "drained", "store closed")
    ]


async def test_a_worker_hears_further_signals_from_its_parent_alone(
    launch: Any,
) -> None:
    """Those that a process manager sends to all are the one that the parent sends."""
    process = launch(fault="worker", drain_time=60.0)
    await process.ready()
    client = await process.open("/echo")
    process.signal(signal.SIGUSR1)  # before the first: ignored
    process.signal(signal.SIGTERM)
    await until(lambda: len(process.lines) > 1, 30, "the drain time")
    for _ in range(2):
        process.signal(signal.SIGTERM)
        assert (await process.state())["open"] == 1
    assert process.lines[1:] == ["sending away 1"]
    process.signal(signal.SIGUSR1)
    assert await close_frame(client) == (3001, "shutdown")
    client.tcp.close()
    assert await process.ended(30) == 0


@pytest.mark.requirement("R49")
@pytest.mark.parametrize("fault", ["drain", "hang"])
async def test_a_third_signal(launch: Any, fault: str) -> None:
    process = launch(fault=fault, drain_time=60.0, shutdown_timeout=60.0)
    await process.ready()
    process.signal(signal.SIGTERM)
    await until(lambda: len(process.lines) > 1, 30, "the drain time")
    process.signal(signal.SIGTERM)
    await until(lambda: "draining 0" in process.lines, 30, "draining")
    process.signal(signal.SIGTERM)
    assert await process.ended(30) == 143


@pytest.mark.requirement("R49")
async def test_the_deadline_begins_anew_where_the_drain_time_is_ended(
    launch: Any,
) -> None:
    process = launch(fault="drain", drain_time=60.0, shutdown_timeout=1.0)
    await process.ready()
    process.signal(signal.SIGTERM)
    await until(lambda: len(process.lines) > 1, 30, "the drain time")
    process.signal(signal.SIGTERM)
    assert await process.ended(30) == 1
    assert process.errors == ["steadwire: shutdown took longer than 1 s"]


async def test_a_signal_before_it_is_ready(launch: Any) -> None:
    process = launch(fault="slow start")
    await until(lambda: process.lines == ["starting"], 30, "starting")
    process.signal(signal.SIGTERM)
    assert await process.ended(10) == 0
    assert process.lines[1:] == ["draining 0", "drained", "store closed"]


async def test_the_port_is_in_use(launch: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = launch(port=port)
        assert await process.ended(30) == 2
    assert process.lines == []
    assert process.errors == [f"steadwire: port {port} on 127.0.0.1 is in use"]


async def test_an_address_that_is_not_ours(launch: Any) -> None:
    process = launch(host="192.0.2.1", port=8000)
    assert await process.ended(30) == 2
    (line,) = process.errors
    assert line.startswith("steadwire: cannot listen on port 8000 on 192.0.2.1: ")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("start", "the store is in use"),
        ("bug", "start-up failed: KeyError: 'nobody expected this'"),
        ("raise", "start-up failed: RuntimeError: no lifespan here"),
    ],
)
async def test_a_start_that_fails(launch: Any, fault: str, text: str) -> None:
    """Hypercorn alone would exit with 0, or serve without it."""
    process = launch(fault=fault)
    assert await process.ended(30) == 2
    assert process.lines == []
    assert process.errors == [f"steadwire: {text}"]


async def test_it_is_there_at_once_after_a_kill(launch: Any) -> None:
    """The port is not held back by connections of the process before."""
    first = launch(port=free_port())
    await first.ready()
    client = await first.open("/echo")
    first.kill()
    second = launch(port=first.port)
    started = time.monotonic()
    await second.ready()
    assert time.monotonic() - started < 30
    client.tcp.close()


async def test_ipv6(launch: Any) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 in this Python")
    process = launch(host="::1")
    await process.ready()
    assert process.lines[0].startswith("ready http://[::1]:")

"""Connections end: everything is freed, and the close frame arrives."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import struct
from typing import Any

import pytest

from tests.harness.process import stopped
from tests.harness.raw import CLOSE, PONG, TEXT, Closed, HandshakeRefused, RawClient
from tests.harness.sockets import TcpClient
from tests.server.running import close_frame, until

UPGRADE = (
    b"GET /echo HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def read_to_the_end(client: RawClient) -> tuple[int, int | None]:
    """Return how many data frames came, and the close code if there was one."""
    frames = 0
    while True:
        try:
            frame = await client.frame()
        except Closed:
            return frames, None
        if frame.opcode == CLOSE:
            return frames, struct.unpack("!H", frame.payload[:2])[0]
        frames += 1


async def test_socket_options(launch: Any) -> None:
    process = launch(send_buffer=100_000, abort_timeout=12.5)
    await process.ready()
    state = await process.state()
    # Linux doubles what is asked for, for its own bookkeeping.
    assert state["send_buffer"] == 200_000
    assert state["user_timeout"] == 12_500
    assert state["no_delay"] == 1


async def closed_by_flood(server: Any, client: RawClient) -> None:
    """Have the application write until it blocks, then close with 3008."""
    before = len((await server.state())["codes"])
    await client.send_text("go")

    async def is_closed() -> bool:
        return len((await server.state())["codes"]) > before

    await until(is_closed, 20.0, "blocked and closed")


async def test_a_websocket_handed_over_has_no_task(server: Any) -> None:
    """Its end is seen all the same: a close frame, the end of its data, a reset."""

    async def are_open(count: int) -> bool:
        return bool((await server.state())["open"] == count)

    await until(lambda: are_open(0), 20.0, "what others opened has ended")
    before = await server.state()
    clients = [await server.open("/handed") for _ in range(4)]
    for client in clients:
        await client.send_text("hello")
        assert (await client.frame()).payload == b"hello"

    async def without_tasks() -> bool:
        state = await server.state()
        return bool(state["open"] == 4 and state["tasks"] <= before["tasks"])

    await until(without_tasks, 20.0, "the tasks of four handshakes ended")
    closes, ends, resets, last = clients
    await closes.send_frame(CLOSE, (1001).to_bytes(2, "big"))
    assert await close_frame(closes) == (1001, "")
    closes.reset()
    ends.tcp.sock.shutdown(socket.SHUT_WR)
    resets.reset()
    await until(lambda: are_open(1), 20.0, "three ended")
    codes = (await server.state())["codes"][len(before["codes"]) :]
    assert sorted(codes) == [1001, 1006, 1006]
    await last.send_text("still")
    assert (await last.frame()).payload == b"still"
    last.reset()
    await server.freed(20.0)
    ends.reset()


async def test_a_websocket_handed_over_keeps_nothing_of_its_handshake(
    server: Any,
) -> None:
    """Neither do asyncio's streams, for which we write attributes that are private."""

    await server.freed(20.0)
    await server.state("?kept")  # the first request makes things that stay
    before = (await server.state("?kept"))["kept"]
    clients = [await server.open("/handed") for _ in range(16)]

    async def is_freed() -> bool:
        state = await server.state("?kept")
        assert state["open"] == 16
        return all(state["kept"][name] <= before[name] for name in before)

    await until(is_freed, 20.0, "what sixteen handshakes took is freed")
    for client in clients:
        client.reset()
    await server.freed(20.0)


async def test_a_peer_that_does_not_read_is_noticed_early(server: Any) -> None:
    """The kernel takes at most the send buffer, not its own megabytes."""
    async with await server.open("/flood", receive_buffer=4096) as client:
        await closed_by_flood(server, client)
        frames, code = await read_to_the_end(client)
        assert code == 3008
        assert frames * 60_000 < 2 << 20
    await server.freed()


@pytest.mark.requirement("L27")
async def test_a_peer_that_never_reads_is_freed(launch: Any) -> None:
    process = launch(abort_timeout=3.0)
    await process.ready()
    tasks = (await process.state())["tasks"]
    client = await process.open("/flood", receive_buffer=4096)
    await client.send_text("go")
    # Not by the linger of a peer that reads: it gets the time to take its close frame.
    took = await process.freed(10.0)
    assert took > 1.6
    state = await process.state()
    assert (state["open"], state["tasks"]) == (0, tasks)
    client.reset()


async def test_a_writer_that_never_gives_up_is_ended_by_the_kernel(launch: Any) -> None:
    """TCP_USER_TIMEOUT: the application is stuck in a write for ever."""
    process = launch(abort_timeout=2.0)
    await process.ready()
    tasks = (await process.state())["tasks"]
    client = await process.open("/flood_for_ever", receive_buffer=4096)
    await client.send_text("go")
    await until(lambda: process.sockets() == 1, 30.0, "connected")
    await process.freed(35.0)

    async def ended() -> bool:
        state = await process.state()
        return bool((state["open"], state["tasks"]) == (0, tasks))

    await until(ended, 30.0, "task ended")
    client.reset()


async def test_the_close_frame_survives_data_in_flight(server: Any) -> None:
    """A reset would destroy it: the peer still sends while we close."""
    for _ in range(20):
        async with await server.open("/close") as client:
            text = bytes([0x81, 0xFE]) + (60_000).to_bytes(2, "big") + bytes(4)
            frame = text + b"a" * 60_000

            async def send_on(client: RawClient = client, frame: bytes = frame) -> None:
                with contextlib.suppress(ConnectionError):
                    for _ in range(20):
                        await client.tcp.send(frame)

            sending = asyncio.create_task(send_on())
            # Reads only once everything has been sent: a reset would be here by then.
            await sending
            assert await close_frame(client) == (3501, "bad request")
            with pytest.raises(Closed):
                await client.frame()
    await server.freed()


async def test_a_slow_peer_still_gets_its_close_frame(server: Any) -> None:
    """It has half a megabyte unread, and writes pongs while it does not read on."""
    async with await server.open("/flood", receive_buffer=16384) as client:
        await closed_by_flood(server, client)
        # Longer than the linger: what counts is what the peer has not taken yet.
        for _ in range(10):
            await client.send_text("{}")
            await asyncio.sleep(0.2)
        frames, code = await read_to_the_end(client)
        assert code == 3008 and frames > 0
    await server.freed()


async def test_abort_frees_at_once(server: Any) -> None:
    async with await server.open("/abort") as client:
        await client.send_text("now")
        await server.freed()  # long before the abort of a silent peer
        with pytest.raises(Closed) as ended:
            await client.frame()
        assert ended.value.code is None
    assert (await server.state())["codes"][-1] == 1006


@pytest.mark.requirement("B121")
async def test_an_application_that_returns(server: Any) -> None:
    async with await server.open("/return") as client:
        await client.send_text("now")
        assert await close_frame(client) == (1011, "")
    await server.freed()


async def test_an_application_that_returns_and_never_read(server: Any) -> None:
    """More messages wait than its queue takes; the reader must not wait for ever."""
    async with await server.open("/return") as client:
        for _ in range(100):
            await client.send_text("now")
        assert await close_frame(client) == (1011, "")
    await server.freed()
    assert (await server.state())["open"] == 0


async def test_sends_driven_by_hand(server: Any) -> None:
    """No task runs the send, and it meets a paused transport again and again."""
    async with await server.open("/driven", receive_buffer=16384) as client:
        await client.send_text("200")
        for number in range(200):
            frame = await client.frame()
            assert frame.opcode == TEXT
            assert frame.payload.startswith(b"%d:yyy" % number)
    await server.freed()


async def test_a_refused_handshake(server: Any) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        await server.open("/refuse")
    assert refused.value.status == 403
    await server.freed()


async def test_handshakes_that_are_none(server: Any) -> None:
    """Each is answered 400, and freed although the peer keeps its side open."""
    requests = [
        UPGRADE.replace(b": 13", b": 12"),
        UPGRADE.replace(b"Sec-WebSocket-Key", b"X-Key"),
        UPGRADE.replace(b"/echo", b"/silent") + b"\x81\x80aaaa",
        UPGRADE.replace(b"/echo", b"/\xff"),
        b"not HTTP at all\r\n\r\n",
    ]
    with contextlib.ExitStack() as open_sides:
        for request in requests:
            tcp = await TcpClient.connect(server.port)
            open_sides.enter_context(contextlib.closing(tcp))
            await tcp.send(request)
            assert (await tcp.read_until(b"\r\n")).startswith(b"HTTP/1.1 400"), request
        await server.freed()
    assert (await server.state())["open"] == 0


async def test_an_upgrade_that_hypercorn_raises_on(launch: Any) -> None:
    """The request is refused, and the log has nothing of what was sent."""
    server = launch(cleartext_http2=True)
    await server.ready()
    tcp = await TcpClient.connect(server.port)
    await tcp.send(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: secret!\r\n"
        b"Connection: Upgrade, HTTP2-Settings\r\n\r\n"
    )
    await server.freed()
    tcp.close()
    assert (await server.state())["open"] == 0
    await server.logged("cause=malformed")
    assert "secret" not in "\n".join(server.errors)


async def test_a_socket_that_is_lost_in_the_turn_in_which_it_is_handed_over(
    launch: Any,
) -> None:
    process = launch()
    await process.ready()
    (await process.open("/handed_late")).reset()

    async def told() -> bool:
        return bool((await process.state())["codes"] == [1006])

    await until(told, 10.0, "the receiver is told of the end")
    process.signal(signal.SIGTERM)
    assert await process.ended(10.0) == 0  # no connection is left to wait for


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_socket_that_is_reset_by_what_we_write_last(
    launch: Any, loop: str
) -> None:
    process = launch(fault=loop)
    await process.ready()
    client = await process.open("/handed")
    # Stopped, so that the server finds all of it there; it handles 4,096 bytes a turn.
    with stopped(process.pid):
        for _ in range(800):
            await client.send_frame(PONG, b"")
        await client.send_frame(CLOSE, b"\x03\xe8")
        client.tcp.close()  # so that our close frame is answered by a reset

    async def told() -> bool:
        return bool((await process.state())["codes"] == [1000])

    await until(told, 10.0, "the receiver is told of the end")
    process.signal(signal.SIGTERM)
    assert await process.ended(10.0) == 0  # no connection is left to wait for


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_frames_before_the_answer_of_a_peer_that_is_gone(
    launch: Any, loop: str
) -> None:
    """The 400 meets a reset, and the application answers meanwhile."""
    process = launch(fault=loop)
    await process.ready()
    for path in (b"/echo", b"/refuse"):
        tcp = await TcpClient.connect(process.port)
        await tcp.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await tcp.read_answer()  # it is served, and waits for its next request
        process.signal(signal.SIGSTOP)
        await tcp.send(UPGRADE.replace(b"/echo", path) + b"\x81\x80aaaa")
        tcp.reset()
        process.signal(signal.SIGCONT)
        await process.freed()

    async def told() -> bool:
        state = await process.state()
        return bool(state["codes"] == [1002] and not state["open"])

    await until(told, 10.0, "the application is told of the end")
    process.signal(signal.SIGTERM)
    assert await process.ended(10.0) == 0
    assert process.errors == []  # no error of a library


async def test_one_connection_for_many_requests(server: Any) -> None:
    request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        for count in (1, 1, 3):  # the last three without waiting for an answer
            await tcp.send(request * count)
            for _ in range(count):
                head = await tcp.read_until(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                length = re.search(rb"content-length: (\d+)", head)
                assert length is not None
                await tcp.read_exactly(int(length[1]))
    await server.freed()


async def test_a_request_that_never_ends(server: Any) -> None:
    """Five seconds for a whole head, and what it takes to close."""
    with contextlib.ExitStack() as stack:
        for sent in (b"", UPGRADE[:40], UPGRADE.replace(b"\r\n\r\n", b"")):
            tcp = await TcpClient.connect(server.port)
            stack.enter_context(contextlib.closing(tcp))
            await tcp.send(sent)
        await server.freed(30.0)


async def test_ends_under_hypercorn_s_own_command(make_server: Any) -> None:
    """It can tell clients of a shutdown only when it is out of patience."""
    server = await make_server(app="service.app:app").start()
    async with await server.raw() as client:
        ending = asyncio.create_task(server.terminate())
        closed = await client.closed()
        assert (closed.code, closed.reason) == (3001, "shutdown")
        client.tcp.close()
        assert await ending == 0
    assert "Traceback" not in server.output()

"""Sockets that hold on to the server without a whole request: attacks on a real one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import pytest

from service.server.tracker import RESERVE
from tests.harness.raw import HandshakeRefused
from tests.harness.server import Server
from tests.harness.sockets import TcpClient
from tests.server.running import until

PATIENCE = 60.0  # s; a wait that ends in failure, never in success
SILENT = 40
PER_ADDRESS = 30
SETTINGS = {
    "STEADWIRE_SERVER_SILENT": str(SILENT),
    "STEADWIRE_LIMITS_SOCKETS_PER_ADDRESS": str(PER_ADDRESS),
}
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
NO_BODY = b"POST /api/info HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n"


async def answer(tcp: TcpClient, request: bytes) -> bytes:
    """Return the status; b"" when the connection ends without an answer."""
    async with asyncio.timeout(PATIENCE):
        try:
            await tcp.send(request)
            return (await tcp.read_until(b"\r\n\r\n")).split(b" ")[1]
        except (EOFError, ConnectionError):
            return b""


async def health(server: Server, source: str) -> bytes:
    tcp = await TcpClient.connect(server.port, source=source)
    with contextlib.closing(tcp):
        return await answer(tcp, HEALTH)


async def flood(
    server: Server, sources: Sequence[str], count: int, request: bytes
) -> list[TcpClient]:
    """Open *count* sockets from each of *sources*, and send *request* on each."""
    clients = []
    for source in sources:
        for _ in range(count):
            tcp = await TcpClient.connect(server.port, source=source)
            clients.append(tcp)
            with contextlib.suppress(ConnectionError):
                await tcp.send(request)
    return clients


def open_sockets(server: Server) -> int:
    found = server.process.net_connections("tcp")
    return sum(each.status in ("ESTABLISHED", "CLOSE_WAIT") for each in found)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"GET /health/live HTTP/1.1\r\nHost:",
        b"{body}",
        HEALTH,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
    ],
    ids=["nothing", "half a head", "no body", "idle", "http2", "refused"],
)
async def test_a_flood_from_many_addresses(
    make_server: Callable[..., Server], request_bytes: bytes
) -> None:
    """They hold no more than their limit, and the others are served meanwhile."""
    server = await make_server(SETTINGS).start()
    if request_bytes == b"{body}":  # the key is known, so that the body is waited for
        key = b"X-API-Key: " + server.key.encode() + b"\r\n\r\n"
        request_bytes = NO_BODY + key
    async with await server.raw() as bystander:
        await bystander.subscribe("ch")
        sources = [f"127.0.0.{n}" for n in range(2, 7)]
        clients = await flood(server, sources, 60, request_bytes)
        await until(
            lambda: open_sockets(server) <= SILENT + 1,
            PATIENCE,
            "cut down to the limit",
        )
        assert [await health(server, f"127.0.0.{n}") for n in (1, 2, 9)] == [b"200"] * 3
        for number in range(1, 4):
            assert await bystander.publish("ch", number) == {}
        assert len(await bystander.publications("ch", 3)) == 3
        async with server.api() as api:
            assert await api.publish("ch", 4) == 4
        async with await server.raw() as newcomer:
            assert await newcomer.publish("ch", 5) == {}
    for tcp in clients:
        tcp.close()
    assert "Traceback" not in server.output()


async def test_one_address_makes_room_among_its_own(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server(SETTINGS).start()
    [other] = await flood(server, ["127.0.0.2"], 1, HEALTH)
    async with asyncio.timeout(PATIENCE):
        await other.read_until(b"}")
    clients = await flood(server, ["127.0.0.3"], 2 * PER_ADDRESS, b"")
    await until(
        lambda: all(c.ended() for c in clients[:PER_ADDRESS]), PATIENCE, "cut off"
    )
    assert not any(c.ended() for c in clients[PER_ADDRESS:])
    # It has been idle for longer than any of these.
    assert await answer(other, HEALTH) == b"200"
    for tcp in (*clients, other):
        tcp.close()
    await server.logged('"cause": "sockets"')
    assert server.output().count('"cause": "sockets"') == 1


async def test_the_reserve(make_server: Callable[..., Server]) -> None:
    """An address full of WebSockets still gets to the health endpoints, and no more."""
    server = await make_server(SETTINGS).start()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(PER_ADDRESS):
            await stack.enter_async_context(await server.raw())
        crowd = await flood(server, ["127.0.0.1"], 3 * RESERVE, b"")
        tcp = await TcpClient.connect(server.port)
        async with asyncio.timeout(PATIENCE):
            await tcp.send(HEALTH)
            head = (await tcp.read_until(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200") and b"connection: close" in head
        await until(
            lambda: open_sockets(server) <= PER_ADDRESS + RESERVE,
            PATIENCE,
            "in the reserve",
        )
        with pytest.raises(HandshakeRefused) as refused:
            await server.raw()
        assert refused.value.status == 503
        for start in (
            b"POST /api/info",
            b"GET /metrics",
            b"GET //health/live",
            b"PRI *",
        ):
            other = await TcpClient.connect(server.port)
            assert (
                await answer(other, HEALTH.replace(b"GET /health/live", start))
                == b"503"
            )
            other.close()
        # Another address is not full.
        fresh = await TcpClient.connect(server.port, source="127.0.0.2")
        assert await answer(fresh, HEALTH.replace(b"/live", b"/ready")) == b"200"
        for one in (*crowd, tcp, fresh):
            one.close()

    # There is room again.
    async def admitted() -> bool:
        try:
            async with await server.raw() as client:
                return await client.publish("ch", 1) == {}
        except HandshakeRefused:
            return False

    await until(admitted, PATIENCE, "room again")


async def test_the_sockets_of_a_trusted_proxy_have_no_limit_of_an_address(
    make_server: Callable[..., Server],
) -> None:
    trusted = {"STEADWIRE_SERVER_TRUSTED_PROXIES": '["127.0.0.2/32"]'}
    server = await make_server({**SETTINGS, **trusted}).start()
    clients = await flood(server, ["127.0.0.2"], PER_ADDRESS + 5, HEALTH)
    for tcp in clients:
        async with asyncio.timeout(PATIENCE):
            await tcp.read_until(b"}")
    assert not any(tcp.ended() for tcp in clients)
    for tcp in clients:
        tcp.close()


@pytest.mark.slow
async def test_slow_requests_end(make_server: Callable[..., Server]) -> None:
    """Half a head and a slow body are given up; one that is fast enough is not."""
    server = await make_server().start()
    key = b"X-API-Key: " + server.key.encode() + b"\r\n"
    start = b"POST /api/info HTTP/1.1\r\nHost: x\r\n" + key
    requests = [start, start + b"Content-Length: 900000\r\n\r\n"]
    stalled = [await TcpClient.connect(server.port) for _ in requests]
    for tcp, request in zip(stalled, requests, strict=True):
        await tcp.send(request)
    steady = await TcpClient.connect(server.port)
    await steady.send(start + b"Content-Length: 30000\r\n\r\n{")

    async def feed() -> None:  # 3 KB/s, for twice as long as a stalled one has
        for _ in range(100):
            await steady.send(b" " * 299 + b"")
            await asyncio.sleep(0.1)
        await steady.send(b" " * 98 + b"}")

    feeding = asyncio.create_task(feed())
    for tcp in stalled:
        assert await answer_within(tcp, 12.0) == b"408"
        tcp.close()
    await feeding
    assert await answer_within(steady, 10.0) == b"200"
    steady.close()


async def answer_within(tcp: TcpClient, seconds: float) -> bytes:
    async with asyncio.timeout(seconds):
        return (await tcp.read_until(b"\r\n\r\n")).split(b" ")[1]

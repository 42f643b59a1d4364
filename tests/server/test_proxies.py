"""Clients behind nginx and Caddy, with the configurations of the docs.

No tunnel is there, and a proxy that ends connections costs nobody a publication.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faultproxy import FaultProxy
from tests.harness.metrics import scrape
from tests.harness.ports import free_port
from tests.harness.process import ROOT
from tests.harness.proxies import start_proxy
from tests.harness.raw import RawClient
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.harness.sockets import TcpClient
from tests.server.running import until

USUAL = """
server {
    listen 80;
    location /connection/websocket {
        proxy_pass http://127.0.0.1:8000;
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection "upgrade";
    }
}
"""
H2C = (
    b"GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


def documented(language: str) -> str:
    """Return the block of docs/running.md in *language*."""
    text = (ROOT / "docs" / "running.md").read_text()
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)
    return str(block)


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Callable[[str, str, int], int]]:
    """Start a proxy with a block of configuration, and return its port."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, block: str, port: int) -> int:
        own = free_port()
        block, listens = re.subn(r"(listen |^:)80\b", rf"\g<1>{own}", block, flags=re.M)
        block, targets = re.subn(r"127\.0\.0\.1:8000", f"127.0.0.1:{port}", block)
        assert listens == 1 and targets >= 1
        started.append(start_proxy(name, block, tmp_path))
        return own

    yield start
    for process in started:
        process.terminate()
        process.wait(10)


async def listening(port: int) -> None:
    def accepts() -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            return True
        return False

    await until(accepts, 20.0, "the proxy listens")


async def status(port: int, request: bytes) -> bytes:
    with contextlib.closing(await TcpClient.connect(port)) as tcp:
        async with asyncio.timeout(10.0):
            await tcp.send(request)
            return (await tcp.read_until(b"\r\n")).split(b" ")[1]


@pytest.mark.parametrize("name", ["nginx", "caddy"])
async def test_the_documented_configuration(
    make_server: Callable[..., Server],
    behind: Callable[[str, str, int], int],
    name: str,
) -> None:
    """The server would take the upgrade, so this is what the proxy passes on."""
    server = make_server(
        {
            "STEADWIRE_SERVER_CLEARTEXT_HTTP2": "true",
            "STEADWIRE_SERVER_TRUSTED_PROXIES": '["127.0.0.1/32"]',
        }
    )
    await server.start()
    assert await status(server.port, H2C) == b"101"
    port = behind(name, documented(name), server.port)
    await listening(port)
    assert await status(port, H2C) not in (b"101", b"200")
    assert await status(port, H2C.replace(b"h2c", b"websocket, h2c")) != b"101"
    health = b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert await status(port, health) == b"200"
    assert await status(port, health.replace(b"/health/ready", b"/api/info")) == b"404"
    async with await RawClient.open(port) as client:
        await client.connect()
        assert await client.publish("proxied", 1) == {}


async def test_the_usual_configuration_of_nginx(
    make_server: Callable[..., Server], behind: Callable[[str, str, int], int]
) -> None:
    """nginx passes the upgrade on, and the server does not take it."""
    server = await make_server().start()
    port = behind("nginx", USUAL, server.port)
    await listening(port)
    assert await status(port, H2C) == b"426"
    assert await status(server.port, H2C) == b"426"
    assert await status(server.port, PREFACE) == b"505"
    async with await RawClient.open(port) as client:
        await client.connect()
        assert await client.publish("proxied", 1) == {}


async def test_the_tunnel_is_there_where_a_setting_asks_for_it(
    make_server: Callable[..., Server], behind: Callable[[str, str, int], int]
) -> None:
    """What the two tests above are about, with both defences off."""
    server = make_server({"STEADWIRE_SERVER_CLEARTEXT_HTTP2": "true"})
    await server.start()
    port = behind("nginx", USUAL, server.port)
    await listening(port)
    assert await status(port, H2C) == b"101"


TIMEOUT = "proxy_read_timeout 90s"  # of the documented configuration
IDLE = "proxy_read_timeout 2s"


@pytest.fixture
async def idle_nginx(
    make_server: Callable[..., Server], behind: Callable[[str, str, int], int]
) -> Callable[..., Any]:
    """Start a server behind the documented nginx that ends it after 2 s of silence."""

    async def start(ping_interval: str) -> tuple[Server, int]:
        server = make_server(
            {
                "STEADWIRE_SERVER_TRUSTED_PROXIES": '["127.0.0.1/32"]',
                "STEADWIRE_CLIENT_PING_INTERVAL": ping_interval,
                "STEADWIRE_CLIENT_PONG_TIMEOUT": "0.4",
            }
        )
        await server.start()
        block = documented("nginx")
        assert block.count(TIMEOUT) == 1
        port = behind("nginx", block.replace(TIMEOUT, IDLE), server.port)
        await listening(port)
        return server, port

    return start


async def joined(
    port: int, start_host: Callable[..., Any], channel: str
) -> list[SdkClient]:
    """Return a subscriber of each language."""
    clients = []
    for sdk in ("js-5.8.0", "python-0.7.0"):
        host = await start_host(sdk)
        url = f"ws://127.0.0.1:{port}/connection/websocket"
        client = await SdkClient.create(host, url)
        await client.connect()
        await client.subscribe(channel)
        clients.append(client)
    return clients


def compare(clients: list[SdkClient], channel: str, count: int) -> None:
    """Hold each client to every offset once, and every reconnect to its recovery."""
    for client in clients:
        assert client.offsets(channel) == list(range(1, count + 1))
        again = client.events["subscribed"][1:]
        assert all(one["was_recovering"] and one["recovered"] for one in again)
        assert client.events["disconnected"] == []


@pytest.mark.slow
@pytest.mark.requirement("L13")
async def test_pings_below_the_idle_time_keep_a_silent_connection(
    idle_nginx: Callable[..., Any], start_host: Callable[..., Any], channel: str
) -> None:
    server, port = await idle_nginx("0.5")
    clients = await joined(port, start_host, channel)
    async with server.api() as api:

        async def pongs() -> float:
            return (await scrape(api))["commands_total{pong}"]

        enough = await pongs() + 2 * 14  # 7 s, more than three times the idle time

        async def quiet() -> bool:
            return await pongs() >= enough

        await until(quiet, 60.0, "fourteen pongs of each client")
        assert await api.publish(channel, "after the silence") == 1
    for client in clients:
        await client.seen("publication", 1)
        assert len(client.events["connecting"]) == 1
    compare(clients, channel, 1)


@pytest.mark.slow
@pytest.mark.requirement("L13")
async def test_pings_above_the_idle_time_cost_connections_and_no_publication(
    idle_nginx: Callable[..., Any], start_host: Callable[..., Any], channel: str
) -> None:
    server, port = await idle_nginx("25")
    clients = await joined(port, start_host, channel)
    count = 0
    async with server.api() as api:
        for cut in range(1, 4):
            for client in clients:  # nginx has ended it, for nothing was said
                await client.seen("connecting", cut + 1)
            for _ in range(20):  # some while away, some live
                count += 1
                assert await api.publish(channel, count) == count
            for client in clients:
                await client.seen("publication", count)
    compare(clients, channel, count)


@pytest.mark.requirement("L13", "B72")
async def test_a_proxy_that_cuts_all_the_time_costs_no_publication(
    idle_nginx: Callable[..., Any], start_host: Callable[..., Any], channel: str
) -> None:
    server, port = await idle_nginx("25")
    count = 0
    async with FaultProxy(port, seed=13) as proxy, server.api() as api:
        clients = await joined(proxy.port, start_host, channel)
        for cut in range(1, 9):
            for n in range(20):
                count += 1
                assert await api.publish(channel, count) == count
                if n == 10:
                    (proxy.cut if cut % 2 else proxy.reset)()
            for client in clients:
                await client.seen("subscribed", cut + 1)
                await client.seen("publication", count)
    compare(clients, channel, count)
    assert [len(client.events["connecting"]) for client in clients] == [9, 9]

"""infra/nginx/steadwire.conf: addresses, kept connections, cuts, reloads and deaths."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.harness.ports import free_port
from tests.harness.process import ROOT
from tests.harness.proxies import start_proxy
from tests.harness.raw import RawClient
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.harness.sockets import TcpClient
from tests.server.running import until
from tests.server.test_proxies import compare, joined, listening, status
from tests.server.test_tls import certificate

BLOCK = (ROOT / "infra" / "nginx" / "steadwire.conf").read_text()
READ_TIMEOUT = "proxy_read_timeout 90s"


class Nginx:
    """nginx with the published file, but for its addresses and its certificate.

    Args:
        directory: Its files.
        server: The port of the service.
        changes: More replacements in the file.

    Attributes:
        port: Without TLS, for clients of tests.
        tls: With TLS.
    """

    def __init__(self, directory: Path, server: int, changes: dict[str, str]) -> None:
        self._directory = directory
        self.port, self.tls = free_port(), free_port()
        pem = directory / "localhost.pem"
        certificate(pem)
        self._block = BLOCK
        for old, new in {
            "listen 443 ssl;": f"listen {self.tls} ssl; listen {self.port};",
            "server 127.0.0.1:8000;": f"server 127.0.0.1:{server};",
            "/etc/ssl/steadwire/fullchain.pem": str(pem),
            "/etc/ssl/steadwire/privkey.pem": str(pem),
            **changes,
        }.items():
            assert self._block.count(old) == 1, old
            self._block = self._block.replace(old, new)
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self.process = start_proxy("nginx", self._block, self._directory)
        await listening(self.port)

    def workers(self) -> set[int]:
        """Return the processes that take clients; one that goes is among them."""
        assert self.process is not None
        return {each.pid for each in psutil.Process(self.process.pid).children()}

    async def reload(self) -> None:
        """Read the file again: workers go when their clients have gone, or are told."""
        before = self.workers()
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)
        await until(lambda: bool(self.workers() - before), 20.0, "new workers")

    def kill(self) -> None:
        """End it in the middle of everything."""
        if self.process is not None:
            for pid in self.workers():
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
            self.process.kill()
            self.process.wait(10)
            self.process = None


@pytest.fixture
def make_nginx(tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    made: list[Nginx] = []

    def make(server: Server, changes: dict[str, str] | None = None) -> Nginx:
        directory = tmp_path / f"nginx{len(made)}"
        directory.mkdir()
        made.append(Nginx(directory, server.port, changes or {}))
        return made[-1]

    yield make
    for each in made:
        each.kill()


TRUSTING = {"STEADWIRE_SERVER_TRUSTED_PROXIES": '["127.0.0.1/32"]'}


def peers(server: Server) -> set[int]:
    """Return the ports of those that are connected to the service."""
    return {
        each.raddr.port
        for each in server.process.net_connections("tcp")
        if each.status == psutil.CONN_ESTABLISHED and each.laddr.port == server.port
    }


@pytest.mark.requirement("L13")
async def test_paths_addresses_and_kept_connections(
    make_server: Callable[..., Server], make_nginx: Callable[..., Nginx]
) -> None:
    """One server for all, as each takes its time to start."""
    server = await make_server(TRUSTING).start()
    nginx = make_nginx(server)
    await nginx.start()
    health = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"

    # The upstream's connection is kept: one for twenty requests of twenty clients.
    kept: set[int] = set()
    for _ in range(20):
        assert await status(nginx.port, health % b"/health/ready") == b"200"
        kept |= peers(server)
    assert len(kept) == 1
    for path, expected in (
        (b"/", b"404"),
        (b"/metrics", b"404"),
        (b"/api/info", b"405"),  # reached, from this machine alone
    ):
        assert await status(nginx.port, health % path) == expected, path
    with contextlib.closing(
        await TcpClient.connect(nginx.port, source="127.0.0.2")
    ) as stranger:
        await stranger.send(health % b"/api/info")
        assert b" 403 " in await stranger.read_until(b"\r\n")

    async with httpx.AsyncClient(verify=False, trust_env=False, timeout=30.0) as client:
        url = f"https://localhost:{nginx.tls}/health/ready"
        assert (await client.get(url)).json()["status"] == "ready"

    # An address is that of the client's socket, whatever the client writes itself.
    sources = ["127.0.0.2", "127.0.0.3"]
    for times, source in enumerate(sources, 1):
        forged = {"X-Forwarded-For": "192.0.2.1"}
        async with await RawClient.open(
            nginx.port, source=source, headers=forged
        ) as raw:
            await raw.connect()
        await server.logged('"event": "authentication"', times)
    lines = [each for each in server.log() if each["event"] == "authentication"]
    assert [each["address"] for each in lines] == sources


@pytest.mark.slow
@pytest.mark.requirement("L13", "B72")
async def test_sdks_lose_nothing_by_idle_cuts_reloads_and_deaths_of_nginx(
    make_server: Callable[..., Server],
    make_nginx: Callable[..., Nginx],
    start_host: Callable[..., Any],
    channel: str,
) -> None:
    """Idle times are 2 s here, and the server pings later: nginx cuts all the time."""
    server = make_server(TRUSTING | {"STEADWIRE_CLIENT_PING_INTERVAL": "25"})
    await server.start()
    nginx = make_nginx(server, {READ_TIMEOUT: "proxy_read_timeout 2s"})
    await nginx.start()
    clients: list[SdkClient] = await joined(nginx.port, start_host, channel)
    count = 0
    async with server.api() as api:
        for what in ("idle", "reload", "idle", "death"):
            before = {client: len(client.events["connecting"]) for client in clients}
            match what:
                case "reload":
                    await nginx.reload()
                case "death":
                    nginx.kill()
            for _ in range(10):
                count += 1
                assert await api.publish(channel, count) == count
            if what == "death":
                await nginx.start()
            for client in clients:  # cut by now, or soon: nothing is said
                await client.seen("connecting", before[client] + 1)
            for _ in range(10):
                count += 1
                assert await api.publish(channel, count) == count
            for client in clients:
                await client.seen("publication", count)
    compare(clients, channel, count)

"""A separate listener for the API and the metrics: each serves its own paths only."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Callable

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.ports import free_port
from tests.harness.raw import HandshakeRefused, RawClient
from tests.harness.server import API_KEY, Server

ADMIN = ["/api/info", "/api/openapi.json", "/api/publish", "/metrics", "/stats"]
HEALTH = ["/health/live", "/health/ready"]


server = server_with({"STEADWIRE_API_PORT": "0"})


def admin_port(server: Server) -> int:
    found = re.search(r"API +http://127\.0\.0\.1:(\d+)/api\n", server.output())
    assert found is not None
    return int(found[1])


@pytest.fixture
async def public(server: Server) -> AsyncIterator[Api]:
    async with Api(server.port, API_KEY) as api:
        yield api


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[Api]:
    async with Api(admin_port(server), API_KEY) as api:
        yield api


async def status(api: Api, method: str, path: str, **headers: str) -> int:
    sent = {"X-API-Key": API_KEY, "Content-Type": "application/json", **headers}
    return (await api.request(method, path, b"{}", sent)).status


async def test_the_two_have_different_ports(server: Server) -> None:
    assert 0 != admin_port(server) != server.port
    assert (
        f"curl -sS -w '\\n' http://127.0.0.1:{admin_port(server)}/api"
        in server.output()
    )


@pytest.mark.parametrize("path", ADMIN)
async def test_the_api_is_at_its_own_address_alone(
    server: Server, public: Api, admin: Api, path: str
) -> None:
    method = "GET" if path.endswith(("json", "metrics", "stats")) else "POST"
    assert await status(admin, method, path) == 200
    for wanted in ("GET", "POST", "OPTIONS"):
        assert await status(public, wanted, path) == 404
    # No header moves a request to another listener.
    lies = {
        "Host": f"127.0.0.1:{admin_port(server)}",
        "X-Forwarded-Host": f"127.0.0.1:{admin_port(server)}",
        "X-Forwarded-Port": str(admin_port(server)),
        "Forwarded": f"host=127.0.0.1:{admin_port(server)}",
        "Steadwire-Admin": "true",
    }
    assert await status(public, method, path, **lies) == 404
    assert await status(public, method, f"//{path}") == 404


@pytest.mark.parametrize("path", HEALTH)
async def test_health_is_at_both(public: Api, admin: Api, path: str) -> None:
    assert await status(public, "GET", path) == 200
    assert await status(admin, "GET", path) == 200


async def test_clients_are_served_at_the_public_address_alone(
    server: Server, public: Api, admin: Api
) -> None:
    client = await RawClient.open(server.port)
    await client.connect()
    assert await status(public, "GET", "/connection/websocket") == 426
    assert await status(admin, "GET", "/connection/websocket") == 404
    with pytest.raises(HandshakeRefused):
        await RawClient.open(admin_port(server))


async def test_what_is_published_at_one_arrives_at_the_other(
    server: Server, admin: Api, channel: str
) -> None:
    client = await RawClient.open(server.port)
    await client.connect()
    await client.subscribe(channel)
    assert await admin.publish(channel, {"n": 1}) == 1
    push = await client.push()
    assert push["pub"]["data"] == {"n": 1}


async def test_both_listeners_are_closed_at_the_end(
    make_server: Callable[..., Server],
) -> None:
    server = make_server({"STEADWIRE_API_PORT": "0"}).start_blocking()
    ports = [server.port, admin_port(server)]
    assert await server.terminate() == 0
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_one_port_and_two_addresses(
    make_server: Callable[..., Server],
) -> None:
    port = free_port()
    server = make_server(
        {
            "STEADWIRE_SERVER_PORT": str(port),
            "STEADWIRE_API_PORT": str(port),
            "STEADWIRE_API_HOST": "127.0.0.2",
        }
    )
    await server.start()
    async with server.api() as api:
        assert await status(api, "POST", "/api/info") == 404
        assert await status(api, "GET", "/health/ready") == 200
    request = (
        f"POST /api/info HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\n"
        "Content-Length: 2\r\n\r\n{}"
    )
    with socket.create_connection(("127.0.0.2", port), 5) as connection:
        connection.sendall(request.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_port_that_is_taken_stops_the_start(
    make_server: Callable[..., Server],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = make_server({"STEADWIRE_API_PORT": str(port)})
        words = f"port {port} on 127.0.0.1 is in use"
        with pytest.raises(AssertionError, match=words):
            server.start_blocking()


def test_a_stock_server_has_no_such_listener(
    make_server: Callable[..., Server],
) -> None:
    server = make_server({"STEADWIRE_API_PORT": "0"}, app="service.app:app")
    server.start_blocking()
    request = f"GET /api/openapi.json HTTP/1.1\r\nHost: x\r\nX-API-Key: {API_KEY}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(f"{request}\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 404")

"""HTTP/1.1 on the wire: what is refused and when, and whether the connection stays."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from tests.harness.fixtures import backends, server_with
from tests.harness.raw import HandshakeRefused, RawClient
from tests.harness.server import Server
from tests.harness.sockets import TcpClient

backend = backends("sqlite")
server = server_with({"STEADWIRE_API_REQUEST_SIZE": "20000"})

GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/info HTTP/1.1\r\nHost: x\r\n"
UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def with_key(server: Server) -> bytes:
    return POST + b"X-API-Key: " + server.key.encode() + b"\r\n"


async def head(tcp: TcpClient) -> bytes:
    async with asyncio.timeout(10.0):
        return (await tcp.read_until(b"\r\n\r\n")).lower()


async def answer(server: Server, request: bytes) -> bytes:
    """Return the head of the answer, in lower case."""
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        await tcp.send(request)
        return await head(tcp)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", b"400"),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", b"400"),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n", b"400"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n", b"501"),
        (GET.replace(b"/health/live", b"health/live"), b"400"),
        (GET.replace(b"/health/live", b"ftp://x/health/live"), b"400"),
        (GET.replace(b"/health/live", b"http:///health/live"), b"400"),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n", b"400"),
        (GET.replace(b"HTTP/1.1", b"HTTP/2.0"), b"505"),
        (GET.replace(b"HTTP/1.1", b"HTTP/1.2"), b"505"),
        (b"PRI * HTTP/2.0\r\n", b"505"),
        (GET + b"Connection: \xff\r\n", b"400"),
        (GET + UPGRADE + b"Upgrade: \xff\r\n", b"400"),
        (GET + UPGRADE + b"Sec-WebSocket-Protocol: \xff\r\n", b"400"),
        (GET + UPGRADE + b"Sec-WebSocket-Extensions: \xff\r\n", b"400"),
        (GET.replace(b"/health/live", b"/connection/websocket") + UPGRADE
         + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR==\r\n", b"400"),
    ],
)  # fmt: skip
async def test_what_has_two_readings_is_refused(
    server: Server, request_bytes: bytes, status: bytes
) -> None:
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        await tcp.send(request_bytes + b"\r\n")
        found = await head(tcp)
        assert found.startswith(b"http/1.1 " + status)
        assert b"connection: close" in found
        with pytest.raises(EOFError):  # and nothing behind it is read as a request
            await tcp.read_exactly(1)
    # Strangers write no line about a failure of ours.
    assert "connection failed" not in server.output()
    assert "Error in ASGI Framework" not in server.output()


@pytest.mark.parametrize(
    "target",
    ["http://x/health/live", "HTTP://other:81/health/live", "https://x/health/live?a"],
)
async def test_absolute_form(server: Server, target: str) -> None:
    request = GET.replace(b"/health/live", target.encode()) + b"\r\n"
    assert (await answer(server, request)).startswith(b"http/1.1 200")


@pytest.mark.parametrize(
    ("lines", "protocol"),
    [
        (b"Connection: keep-alive\r\n", None),
        (b"Sec-WebSocket-Protocol: other\r\n"
         b"Sec-WebSocket-Protocol: centrifuge-protobuf\r\n", b"centrifuge-protobuf"),
        (b"Sec-WebSocket-Protocol: centrifuge-protobuf\r\n"
         b"Sec-WebSocket-Protocol: other\r\n", b"centrifuge-protobuf"),
        (b"Upgrade: other\r\n", None),
    ],
)  # fmt: skip
async def test_a_list_over_two_lines(
    server: Server, lines: bytes, protocol: bytes | None
) -> None:
    request = GET.replace(b"/health/live", b"/connection/websocket")
    found = await answer(server, request + UPGRADE + lines + b"\r\n")
    assert found.startswith(b"http/1.1 101")
    if protocol is not None:
        assert b"sec-websocket-protocol: " + protocol in found


EXPECT = b"Expect: 100-continue\r\n"


@pytest.mark.parametrize("expect", [b"", EXPECT], ids=["", "expect"])
@pytest.mark.parametrize(
    "body", [b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n"]
)
@pytest.mark.parametrize(
    ("start", "status"),
    [
        (POST, b"401"),
        (POST.replace(b"info", b"nothing"), b"404"),
        (POST.replace(b"/api/info", b"//api/info"), b"404"),
        (POST.replace(b"/api/info", b"/health/live"), b"405"),
    ],
    ids=["401", "404", "other spelling", "405"],
)  # fmt: skip
async def test_an_early_refusal(
    server: Server, start: bytes, status: bytes, body: bytes, expect: bytes
) -> None:
    """It does not wait for the body, and says that nothing can follow."""
    found = await answer(server, start + body + expect + b"\r\n")
    assert found.startswith(b"http/1.1 " + status)
    assert b"connection: close" in found


async def test_a_body_that_is_too_large_is_refused_early(server: Server) -> None:
    request = with_key(server) + b"Content-Length: 20001\r\n" + EXPECT + b"\r\n"
    found = await answer(server, request)
    assert found.startswith(b"http/1.1 413")
    assert found.count(b"connection: close") == 1


async def test_a_body_is_asked_for_when_it_is_wanted(server: Server) -> None:
    with contextlib.closing(await TcpClient.connect(server.port)) as tcp:
        for _ in range(2):
            request = with_key(server) + b"Content-Length: 2\r\n" + EXPECT + b"\r\n"
            await tcp.send(request)
            assert (await head(tcp)).startswith(b"http/1.1 100")
            await tcp.send(b"{}")
            found = await head(tcp)
            assert found.startswith(b"http/1.1 200")
            assert b"keep-alive: timeout=75" in found
            length = int(found.split(b"content-length: ")[1].split(b"\r\n")[0])
            await tcp.read_exactly(length)


async def test_a_refused_websocket_says_that_the_connection_ends(
    server: Server,
) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        await RawClient.open(server.port, headers={"Origin": "https://evil.example"})
    assert refused.value.status == 403
    assert "connection: close" in refused.value.head.lower()


@pytest.mark.parametrize("fields", ["Connection: close\r\n", ""])
async def test_the_client_says_whether_the_connection_stays(
    server: Any, fields: str
) -> None:
    found = await answer(server, GET + fields.encode() + b"\r\n")
    assert (b"connection: close" in found) == bool(fields)
    assert (b"keep-alive" in found) == (not fields)

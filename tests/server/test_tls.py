"""HTTP/2 over TLS, by ALPN, under Hypercorn's own command: on without a setting."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.harness.ports import free_port
from tests.harness.process import ROOT, environment, launched
from tests.server.running import until

H2C = (
    b"GET /connection/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
)


def certificate(file: Path) -> None:
    """Write a key and its certificate for localhost into *file*."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=localhost")
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Serve with a certificate, and return the port."""
    port = free_port()
    file = tmp_path / "localhost.pem"
    certificate(file)
    bind = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "hypercorn", "service.app:app", "--bind", bind]
    process = subprocess.Popen(
        launched(*command, "--certfile", file, "--keyfile", file),
        cwd=tmp_path,
        env=environment({"PYTHONPATH": str(ROOT)}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield port
    process.terminate()
    process.wait(10)


async def test_http2_over_tls(port: int, tmp_path: Path) -> None:
    def context() -> ssl.SSLContext:  # httpx sets ALPN in the one that it gets
        return ssl.create_default_context(cafile=tmp_path / "localhost.pem")

    def accepts() -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port)),
        ):
            return True
        return False

    await until(accepts, 30.0, "listening")
    url = f"https://localhost:{port}"
    async with httpx.AsyncClient(
        http2=True, verify=context(), trust_env=False, timeout=30.0
    ) as client:
        answers = await asyncio.gather(
            *(client.get(f"{url}/health/live") for _ in range(20)),
            client.post(f"{url}/nothing", content=b"x" * 100_000),
        )
    assert [one.http_version for one in answers] == ["HTTP/2"] * 21
    assert [one.status_code for one in answers] == [200] * 20 + [404]
    # Without ALPN it is HTTP/1.1, and no upgrade changes that.
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context(), server_hostname="localhost"
    )
    writer.write(H2C)
    async with asyncio.timeout(10.0):
        assert (await reader.readline()).startswith(b"HTTP/1.1 426")
        writer.close()  # TLS ends by words of both sides
        with contextlib.suppress(OSError):
            await writer.wait_closed()

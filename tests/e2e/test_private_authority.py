"""Hooks and key sets behind certificates of a private authority."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from service.cli.doctor.examination import examine
from tests.harness.authority import Authority
from tests.harness.raw import RawClient
from tests.harness.server import Server, ServerFailed
from tests.harness.tokens import connection, jwks
from tests.harness.tools import missing

INTERNAL = {"code": 100, "message": "internal server error", "temporary": True}


class Application(NamedTuple):
    """An application behind TLS: the authority, and what makes a server ask it."""

    authority: Authority
    settings: dict[str, str]


@pytest.fixture
async def application(tmp_path: Path) -> AsyncIterator[Application]:
    async def connect(_: web.Request) -> web.Response:
        return web.json_response({"result": {"user": "ann"}})

    async def keys(_: web.Request) -> web.Response:
        return web.json_response(jwks("k1"))

    authority = Authority(tmp_path)
    app = web.Application()
    app.router.add_post("/connect", connect)
    app.router.add_get("/jwks", keys)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.context)
    await site.start()
    port = runner.addresses[0][1]
    settings = {
        "STEADWIRE_PROXY_CONNECT": f"https://127.0.0.1:{port}/connect",
        "STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT": f"https://127.0.0.1:{port}/jwks",
    }
    yield Application(authority, settings)
    await runner.cleanup()


async def outcomes(server: Server) -> list[Any]:
    """Return the errors of a client that a hook lets in, and of one with a token."""
    found = []
    for token in ("", connection("bea", algorithm="RS256", kid="k1")):
        async with await RawClient.open(server.port) as client:
            reply = await client.request(connect={"token": token})
            found.append(reply.get("error"))
    return found


async def test_an_authority_that_is_not_trusted_is_named_in_the_log(
    application: Application, make_server: Callable[..., Server]
) -> None:
    server = await make_server(application.settings).start()
    assert await outcomes(server) == [INTERNAL, INTERNAL]
    for event in ("a hook's endpoint failed", "a key set cannot be fetched"):
        await server.logged(event)
        (entry,) = [each for each in server.log() if each["event"] == event]
        assert "certificate verify failed: unable to get local" in entry["reason"]
        assert "tls.ca_file or SSL_CERT_FILE" in entry["reason"]


@pytest.mark.parametrize("name", ["STEADWIRE_TLS_CA_FILE", "SSL_CERT_FILE"])
async def test_a_file_of_authorities(
    application: Application, make_server: Callable[..., Server], name: str
) -> None:
    trusting = {name: str(application.authority.file)}
    server = await make_server({**application.settings, **trusting}).start()
    assert await outcomes(server) == [None, None]


async def test_a_directory_of_authorities(
    application: Application, make_server: Callable[..., Server], tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        missing("openssl", "sudo apt-get install -y openssl")
    directory = tmp_path / "authorities"
    directory.mkdir()
    shutil.copy(application.authority.file, directory / "ours.pem")
    subprocess.run(["openssl", "rehash", directory], check=True)
    trusting = {"SSL_CERT_DIR": str(directory)}
    server = await make_server({**application.settings, **trusting}).start()
    assert await outcomes(server) == [None, None]


async def test_a_certificate_for_another_name_is_refused(
    application: Application, make_server: Callable[..., Server]
) -> None:
    url = application.settings["STEADWIRE_PROXY_CONNECT"]
    settings = {
        "STEADWIRE_PROXY_CONNECT": url.replace("127.0.0.1", "localhost"),
        "STEADWIRE_TLS_CA_FILE": str(application.authority.file),
    }
    server = await make_server(settings).start()
    async with await RawClient.open(server.port) as client:
        assert (await client.request(connect={}))["error"] == INTERNAL
    await server.logged("certificate verify failed: Hostname mismatch")
    assert "tls.ca_file or" not in server.output()  # another one would not help


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("STEADWIRE_TLS_CA_FILE", "tls.ca_file: {}: No such file"),
        ("SSL_CERT_DIR", "tls.ca_directory: {} is not a directory"),
    ],
)
async def test_authorities_that_are_not_there(
    application: Application,
    make_server: Callable[..., Server],
    tmp_path: Path,
    setting: str,
    text: str,
) -> None:
    nowhere = str(tmp_path / "nowhere")
    server = make_server({**application.settings, setting: nowhere})
    with pytest.raises(ServerFailed) as failed:
        await server.start()
    assert text.format(nowhere) in str(failed.value)


async def test_the_doctor_tries_hooks_and_key_sets(application: Application) -> None:
    async def examined(**more: str) -> list[tuple[str, str]]:
        env = {"STEADWIRE_SERVER_PORT": "0", **application.settings, **more}
        found = await asyncio.to_thread(list, examine(env))
        return [(f.level, f.text) for f in found if f.subject in ("hooks", "keys")]

    for level, text in await examined():
        assert level == "problem"
        assert "certificate verify failed: unable to get local issuer" in text
        assert "tls.ca_file or SSL_CERT_FILE" in text
    trusting = {"STEADWIRE_TLS_CA_FILE": str(application.authority.file)}
    assert await examined(**trusting) == [
        ("ok", "can be used"),
        ("ok", "proxy.connect can be reached"),
    ]
    nowhere = {**trusting, "STEADWIRE_PROXY_CONNECT": "http://127.0.0.1:1/connect"}
    assert (await examined(**nowhere))[1] == (
        "problem",
        "proxy.connect cannot be reached: Connection refused",
    )

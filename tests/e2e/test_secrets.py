"""No secret in any output: keys, tokens and tickets on every path that refuses them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.raw import Closed, HandshakeRefused
from tests.harness.server import Server
from tests.harness.tokens import BAD, SECRET, connection, subscription
from tests.harness.tokens import settings as token_settings

API_KEY = "s3cret-api-key-of-the-settings"
FILE_KEY = "s3cret-api-key-of-the-file"
HASH_KEY = "s3cret-hash-key-of-the-log"
PASSWORD = "s3cret-password-of-a-hook"
PREVIOUS = "s3cret-previous-key-of-tokens-0123456789"
PAYLOAD = "s3cret-payload"


@pytest.fixture
def server(make_server: Callable[..., Server], tmp_path: Path) -> Server:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[reader]\nkey = "{FILE_KEY}"\nread = true\n')
    server = make_server(
        token_settings(
            STEADWIRE_API_KEY=API_KEY,
            STEADWIRE_API_KEYS_FILE=str(keys),
            STEADWIRE_LOG_LEVEL="debug",
            STEADWIRE_LOG_HASH_KEY=HASH_KEY,
            STEADWIRE_TOKEN_HMAC_PREVIOUS_SECRET_KEY=PREVIOUS,
            STEADWIRE_TOKEN_HMAC_PREVIOUS_SECRET_KEY_VALID_UNTIL="9999999999",
            # Nothing listens there, so the hook always fails.
            STEADWIRE_PROXY_RPC=f"http://me:{PASSWORD}@127.0.0.1:1/rpc",
            STEADWIRE_TOKEN_JWKS_PUBLIC_ENDPOINT=f"http://me:{PASSWORD}@127.0.0.1:1/k",
            STEADWIRE_CONNECTIONS_USER_LIMIT="50",
        )
    )
    server.key = API_KEY
    return server.start_blocking()


async def show(server: Server, **commands: Any) -> None:
    """Send one command on a connection of its own; whatever comes, comes."""
    client = await server.raw(connected=False)
    try:
        await client.request(**commands)
    except (Closed, ConnectionError):
        pass
    finally:
        client.reset()


async def connections(server: Server, tokens: list[str]) -> None:
    for token in tokens:
        await show(server, connect={"token": token})
        await show(server, connect={"token": token, "data": {"p": PAYLOAD}})
        client = await server.raw(connected=False)
        await client.connect(token=connection("ann"))
        for command in (
            {"refresh": {"token": token}},
            {"subscribe": {"channel": "$x", "token": token}},
            {"sub_refresh": {"channel": "$x", "token": token}},
            {"publish": {"channel": "$x", "data": {"p": PAYLOAD, "token": token}}},
            {"rpc": {"method": "m", "data": {"p": PAYLOAD, "token": token}}},
            {"nothing": {"token": token}},
        ):
            try:
                await client.request(**command)
            except (Closed, ConnectionError):
                client = await server.raw(connected=False)
                await client.connect(token=connection("ann"))
        client.reset()
        client = await server.raw(connected=False)
        await client.send_text('{"id":1,"connect":{"token":"' + token)  # cut off
        with pytest.raises(Closed):
            await client.message()
        try:
            path = f"/connection/websocket?token={token}&api_key={token}"
            (await server.raw(connected=False, path=path)).reset()
        except HandshakeRefused:
            pass


async def calls(server: Server, secrets: list[str]) -> None:
    async with server.api() as api:
        for secret in secrets:
            for headers, query in (
                ({"X-API-Key": secret}, ""),
                ({"Authorization": f"apikey {secret}"}, ""),
                ({"Authorization": f"Bearer {secret}"}, ""),
                ({}, f"?api_key={secret}"),
            ):
                for path in ("/api/publish", "/api/nothing", "/metrics", "/stats"):
                    method = "POST" if path.startswith("/api") else "GET"
                    for body in (b"{", json.dumps({"channel": secret}).encode()):
                        await api.request(method, path + query, body, headers)
        for method in ("ticket", "revoke_token", "invalidate_user_tokens", "rpc"):
            for body in ({}, {"user": 1, "uid": "", "method": "m", "x": PAYLOAD}):
                await api.post(method, body)
        data = {"channel": "nowhere:x", "data": {"p": PAYLOAD}}
        await api.post("publish", data)
        await api.post("publish", {**data, "channel": "chat"})
        await api.post("batch", {"commands": [{"publish": data}, {"rpc": data}]})


@pytest.mark.requirement("R47", "R48", "B109")
async def test_no_secret_is_in_any_output(server: Server) -> None:
    async with server.api() as api:
        tickets = [
            (await api.call("ticket", {"user": "ann"}))["ticket"] for _ in range(3)
        ]
        bound = {"user": "ann", "origin": "https://a.example"}
        tickets.append((await api.call("ticket", bound))["ticket"])
    tokens = [
        connection("ann"),
        connection("ann", jti="jti-1", algorithm="RS256", kid="k1"),
        subscription("ann", "$x"),
        *[bad({"sub": "ann"}) for bad in BAD.values()],
        *tickets,
        tickets[0],  # used
        "tkt_short",
    ]
    await connections(server, tokens)
    await calls(server, [API_KEY, FILE_KEY, API_KEY + "x", tokens[0], tickets[1]])
    path = Path(server.settings["STEADWIRE_API_KEYS_FILE"])
    path.write_text(f'[reader]\nkey = "{FILE_KEY}"\nread = "{FILE_KEY}"\n')
    async with server.api() as api:
        for _ in range(40):
            await api.post("info", {}, key=FILE_KEY)
            ready = await api.request("GET", "/health/ready")
            if ready.json["status"] == "degraded":
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("the mistake was not noticed")
        bodies = ready.body.decode()
        for path_, key in (("/stats", API_KEY), ("/metrics", API_KEY)):
            page = await api.request("GET", path_, headers={"X-API-Key": key})
            assert page.status == 200
            bodies += page.body.decode()
    assert await server.terminate() == 0
    text = server.output() + bodies
    assert "api.key is set" in text and "administered" in text
    forbidden = [API_KEY, FILE_KEY, HASH_KEY, PASSWORD, PREVIOUS, SECRET, PAYLOAD]
    forbidden += tokens[:-1]
    forbidden += [ticket.removeprefix("tkt_") for ticket in tickets]
    forbidden += [part for token in tokens[:3] for part in token.split(".")[1:]]
    digests = [hashlib.sha256(each.encode()).hexdigest() for each in forbidden]
    for each in (*forbidden, *digests):
        assert each not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STEADWIRE_SUBSCRIPTION_TOKEN_RSA_PUBLIC_KEY", "s3cret-no-pem"),
        ("STEADWIRE_TOKEN_HMAC_SECRET_KEY", "-----BEGIN s3cret KEY-----" + "x" * 40),
        ("STEADWIRE_TOKEN_RSA_PUBLIC_KEY", "s3cret-no-pem"),
        ("STEADWIRE_API_PORT", "s3cret-no-port"),
        ("STEADWIRE_API_KEYS_FILE", "keys.toml"),
        ("STEADWIRE_S3CRET_NAME", "s3cret-of-no-setting"),
    ],
)
def test_a_start_that_is_refused_quotes_no_secret(
    make_server: Callable[..., Server], tmp_path: Path, name: str, value: str
) -> None:
    server = make_server({"STEADWIRE_API_KEY": API_KEY, name: value})
    folder = tmp_path / "server0"
    (folder / "keys.toml").write_text('[a]\nkey = "s3cret"\nread = "s3cret"\n')
    with pytest.raises(AssertionError) as failed:
        server.start_blocking()
    text = str(failed.value)
    assert "steadwire: " in text
    assert "s3cret" not in text

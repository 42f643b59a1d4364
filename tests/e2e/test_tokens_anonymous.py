"""Tokens that name no user, and short secrets: the reference server takes both.

The official test suites of the SDKs rely on both: their tokens have no ``sub``, and are
made with the secret ``secret``.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.gateway import GatewayServer
from tests.harness.raw import Closed
from tests.harness.sdk import SdkClient
from tests.harness.server import Server, ServerFailed
from tests.harness.tokens import signed

SHORT = "secret"
SETTINGS = {
    "STEADWIRE_TOKEN_HMAC_SECRET_KEY": SHORT,
    "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps({"presence": True}),
}

server = server_with(SETTINGS)


async def outcome(server: Server, claims: Any, algorithm: str = "HS256") -> object:
    """Return the user that a token with *claims* connects, or the close code."""
    async with await server.raw(connected=False) as client:
        try:
            reply = await client.request(
                connect={"token": signed(claims, SHORT, algorithm)}
            )
        except Closed as end:
            return end.code
        async with server.api() as api:
            found = await api.call("connections", {"user": claims.get("sub") or ""})
        return found["connections"][reply["connect"]["client"]].get("user", "")


async def test_sdks_with_tokens_without_a_user(
    server: Server,
    make_client: Callable[..., Awaitable[SdkClient]],
    api: Api,
    channel: str,
) -> None:
    client = await make_client(server.url, get_token=[signed({"iat": 1}, SHORT)])
    await client.connect()
    private = f"${channel}"
    token = signed({"iat": 1, "channel": private}, SHORT)
    await client.subscribe(private, get_token=[token])
    found = await api.call("presence", {"channel": private})
    assert [one["user"] for one in found["presence"].values()] == [""]
    assert client.events["error"] == []


@pytest.mark.parametrize("claims", [{}, {"sub": None}, {"sub": ""}])
async def test_absent_null_and_empty_are_anonymous(server: Server, claims: Any) -> None:
    assert await outcome(server, claims) == ""


async def test_a_user_of_another_type_is_invalid(server: Server) -> None:
    assert await outcome(server, {"sub": 42}) == 3500


async def test_a_short_secret_is_said_in_development(server: Server) -> None:
    await server.logged("a setting is weak")
    weak, *more = [e for e in server.log() if e["event"] == "a setting is weak"]
    # Each environment of a function says it, and has begun later.
    assert not more or isinstance(server, GatewayServer)
    assert weak["setting"] == "token.hmac_secret_key"
    assert weak["level"] == "warning"
    assert "less than 32 bytes" in weak["reason"]


async def test_the_log_says_for_which_algorithm_a_secret_is_too_short(
    server: Server,
) -> None:
    assert await outcome(server, {"sub": "long"}, "HS512") == 3500
    await server.logged("hmac_secret_key is too short for HS512: it needs 64 bytes")


async def test_a_setting_refuses_tokens_without_a_user(
    make_server: Callable[..., Server],
) -> None:
    refusing = await make_server(
        {
            **SETTINGS,
            "STEADWIRE_ENVIRONMENT": "production",
            "STEADWIRE_TOKEN_ALLOW_SHORT_SECRETS": "true",
            "STEADWIRE_CLIENT_DISALLOW_ANONYMOUS_CONNECTION_TOKENS": "true",
        }
    ).start()
    for nobody in ({}, {"sub": None}, {"sub": ""}):
        assert await outcome(refusing, nobody) == 3500
    assert await outcome(refusing, {"sub": "ann"}) == "ann"
    assert await outcome(refusing, {"sub": "bea"}, "HS512") == "bea"
    await refusing.logged("client.disallow_anonymous_connection_tokens", 3)


async def test_production_does_not_start_with_a_short_secret(
    make_server: Callable[..., Server],
) -> None:
    short = make_server({**SETTINGS, "STEADWIRE_ENVIRONMENT": "production"})
    with pytest.raises(ServerFailed, match="hmac_secret_key has 6 bytes"):
        await short.start()

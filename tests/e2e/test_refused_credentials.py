"""Many refused credentials from one address, and its neighbours with valid ones."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.harness.fixtures import server_with
from tests.harness.raw import Closed
from tests.harness.sdk import SdkClient
from tests.harness.server import Server
from tests.harness.tokens import BAD, connection
from tests.harness.tokens import settings as token_settings

server = server_with(
    token_settings(
        STEADWIRE_ENVIRONMENT="production",
        STEADWIRE_SERVER_TRUSTED_PROXIES='["127.0.0.1/32"]',
    )
)
BLOCKED = {"code": 111, "message": "too many requests", "temporary": True}


async def outcome(server: Server, token: str, address: str) -> Any:
    """Return the code of the close, or the error, or None for a client that is in."""
    headers = {"X-Forwarded-For": address}
    async with await server.raw(connected=False, headers=headers) as client:
        try:
            return (await client.request(connect={"token": token})).get("error")
        except Closed as end:
            return end.code


@pytest.mark.requirement("B104")
async def test_a_valid_token_is_admitted_where_twenty_bad_ones_came_from(
    server: Server,
) -> None:
    here = "192.0.2.1"
    bad = [BAD["another key"]({"sub": f"eve{n}"}) for n in range(25)]
    assert [await outcome(server, token, here) for token in bad] == [3500] * 25
    assert await outcome(server, connection("ann"), here) is None
    # The twentieth began the block: from it on, what failed is not looked at again.
    assert await outcome(server, bad[18], here) == 3500
    assert [await outcome(server, token, here) for token in bad[18:]] == [BLOCKED] * 7
    assert await outcome(server, bad[24], "192.0.2.2") == 3500
    assert await outcome(server, connection("bea"), here) is None


async def test_sdks_behind_an_address_with_bad_tokens(
    server: Server, make_client: Callable[..., Awaitable[SdkClient]]
) -> None:
    for number in range(21):
        token = BAD["tampered"]({"sub": f"mallory{number}"})
        assert await outcome(server, token, "127.0.0.1") in (3500, BLOCKED)
    client = await make_client(server.url, token=connection("ann"))
    await client.connect()
    assert client.events["error"] == []

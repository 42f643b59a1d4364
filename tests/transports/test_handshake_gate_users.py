"""The handshake gate and users, real or pretended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import jwt
import pytest

from tests.harness.raw import Closed
from tests.harness.server import Server

TOO_MANY = {"code": 111, "message": "too many requests", "temporary": True}
SECRET = "a secret of these tests, of 32 bytes or more"


def token(user: str, secret: str = SECRET, left: float = 3600.0) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time() + left)}, secret)


@pytest.mark.requirement("B96", "B104")
async def test_a_token_that_was_refused_is_not_looked_at_again_for_a_while(
    make_server: Callable[..., Server],
) -> None:
    server = make_server(
        {
            "STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET,
            "STEADWIRE_SERVER_TRUSTED_PROXIES": '["127.0.0.1/32"]',
            "STEADWIRE_LIMITS_FAILURES_PER_ADDRESS": "5",
            "STEADWIRE_LIMITS_FAILURE_BLOCK": "1",
        }
    )
    await server.start()
    guest = {"X-Forwarded-For": "192.0.2.1"}
    good = await server.raw(connected=False, headers=guest)
    await good.connect(token=token("ann"))
    # A token that was good once does not count as refused.
    for _ in range(10):
        client = await server.raw(connected=False, headers=guest)
        reply = await client.request(connect={"token": token("ann", left=-100.0)})
        assert reply["error"]["code"] == 109
        client.tcp.close()
    for number in range(5):
        client = await server.raw(connected=False, headers=guest)
        guess = token("ann", f"{number} is not the secret, but as long as it")
        await client.send({"id": 1, "connect": {"token": guess}})
        assert (await client.closed()).code == 3500
        client.tcp.close()
    # It is looked at again when the block is over; until then the error is temporary.
    blocked = 0
    async with asyncio.timeout(10.0):
        while True:
            async with await server.raw(connected=False, headers=guest) as client:
                try:
                    reply = await client.request(connect={"token": guess})
                except Closed as end:
                    assert end.code == 3500
                    break
                assert reply["error"] == TOO_MANY
                blocked += 1
    assert blocked > 0
    # Valid tokens come in from there as from elsewhere, and those that were in stay.
    for user, address in (("bob", "192.0.2.2"), ("cid", "192.0.2.1")):
        headers = {"X-Forwarded-For": address}
        async with await server.raw(connected=False, headers=headers) as other:
            await other.connect(token=token(user))
    assert "id" in await good.request(presence={"channel": "ch"})
    good.tcp.close()
    await server.logged('"cause": "failures"')
    assert server.output().count('"cause": "failures"') == 1


async def test_connects_of_a_user_over_its_rate(
    make_server: Callable[..., Server],
) -> None:
    server = make_server(
        {
            "STEADWIRE_TOKEN_HMAC_SECRET_KEY": SECRET,
            "STEADWIRE_LIMITS_CONNECTS_PER_USER": "0.001",
            "STEADWIRE_LIMITS_BURST": "3000",
        }
    )
    await server.start()
    for _ in range(3):
        async with await server.raw(connected=False) as client:
            await client.connect(token=token("ann"))
    async with await server.raw(connected=False) as client:
        reply = await client.request(connect={"token": token("ann")})
        assert reply["error"] == TOO_MANY
    async with await server.raw(connected=False) as client:
        await client.connect(token=token("bob"))

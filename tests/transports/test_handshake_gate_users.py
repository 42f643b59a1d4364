"""The handshake gate and users, real or pretended (K96, K100, K103, K104)."""

from __future__ import annotations

import time
from collections.abc import Callable

import jwt
import pytest

from tests.harness.raw import HandshakeRefused
from tests.harness.server import Server

SECRET = "a secret of these tests, of 32 bytes or more"


def token(user: str, secret: str = SECRET, left: float = 3600.0) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time() + left)}, secret)


async def test_who_tries_out_tokens_is_refused_for_a_while(
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
    with pytest.raises(HandshakeRefused) as refused:
        await server.raw(connected=False, headers=guest)
    assert refused.value.status == 429
    assert "retry-after: 1" in refused.value.head.lower()
    # Others come in, and those that were in stay.
    other = await server.raw(connected=False, headers={"X-Forwarded-For": "192.0.2.2"})
    await other.connect(token=token("bob"))
    assert "id" in await good.request(presence={"channel": "ch"})
    # And the address is let in again.
    deadline = time.monotonic() + 10.0
    while True:
        try:
            late = await server.raw(connected=False, headers=guest)
            break
        except HandshakeRefused:
            assert time.monotonic() < deadline
    await late.connect(token=token("ann"))
    for client in (good, other, late):
        client.tcp.close()
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
        assert reply["error"] == {
            "code": 111,
            "message": "too many requests",
            "temporary": True,
        }
    async with await server.raw(connected=False) as client:
        await client.connect(token=token("bob"))

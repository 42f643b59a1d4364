"""Revocations by the server API reach clients that wait for a connection slot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness.raw import Closed, RawClient
from tests.harness.server import Server
from tests.harness.tokens import connection
from tests.harness.tokens import settings as token_settings

BY_USER = "STEADWIRE_CONNECTIONS_USER_LIMIT"


@pytest.mark.parametrize(
    ("method", "body", "code"),
    [
        ("invalidate_user_tokens", {"user": "late"}, 3005),
        ("revoke_token", {"uid": "the-token"}, 3005),
        ("disconnect", {"user": "late"}, 3503),
        ("erase", {"user": "late"}, 3503),
    ],
)
async def test_who_waits_while_others_are_asked_is_let_in_no_more(
    tmp_path: Path, method: str, body: dict[str, str], code: int
) -> None:
    settings = token_settings(**{BY_USER: "1"}, STEADWIRE_CONNECTIONS_POLICY="reject")
    server = Server(tmp_path, settings)
    try:
        await asyncio.to_thread(server.start_blocking)
        token = connection("late", jti="the-token")
        silent = await RawClient.open(server.port)
        await silent.connect(token=token)
        late = await RawClient.open(server.port)
        await late.send({"id": 1, "connect": {"token": token}})
        # The silent one is pinged for it, which it never answers.
        assert (await silent.frame()).payload == b"{}"
        async with server.api() as api:
            await api.call(method, body)
        with pytest.raises(Closed) as end:
            await late.message()
        assert end.value.code == code
    finally:
        server.close()

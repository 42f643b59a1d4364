"""Revocations that come while a client waits for its slot."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.harness.raw import Closed, RawClient
from tests.harness.server import Server
from tests.harness.tokens import connection
from tests.harness.tokens import settings as token_settings


@pytest.mark.parametrize("limit", ["STEADWIRE_CONNECTIONS_USER_LIMIT", "process"])
@pytest.mark.parametrize("method", ["invalidate_user_tokens", "revoke_token"])
async def test_a_token_that_is_revoked_while_others_are_asked_lets_nobody_in(
    tmp_path: Path, method: str, limit: str
) -> None:
    name = limit if limit != "process" else "STEADWIRE_CONNECTIONS_LIMIT"
    settings = token_settings(**{name: "1"}, STEADWIRE_CONNECTIONS_POLICY="reject")
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
        body = {"user": "late"} if method != "revoke_token" else {"uid": "the-token"}
        async with server.api() as api:
            await api.call(method, body)
        with pytest.raises(Closed) as end:
            await late.message()
        assert end.value.code == 3005
    finally:
        server.close()

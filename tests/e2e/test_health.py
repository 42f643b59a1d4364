"""Liveness and readiness, as a load balancer asks for them."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable

import pytest

from tests.harness.api import Api, ApiError
from tests.harness.server import Server


async def status(api: Api, path: str) -> int:
    return (await api.request("GET", path)).status


async def test_a_server_that_serves_is_live_and_ready(server: Server) -> None:
    async with server.api() as api:
        for _ in range(2):
            assert await status(api, "/health/live") == 200
            assert await status(api, "/health/ready") == 200


async def test_locked_database_fails_publishes_and_loses_nothing(
    make_server: Callable[..., Server], channel: str
) -> None:
    server = await make_server({"STEADWIRE_STORE_LOCK_TIMEOUT": "0.2"}).start()
    path = server.settings["STEADWIRE_STORE_PATH"]
    async with server.api() as api, await server.raw() as subscriber:
        await subscriber.subscribe(channel)
        assert await api.publish(channel, 1, idempotency_key="1") == 1
        with contextlib.closing(sqlite3.connect(path)) as thief:
            thief.execute("BEGIN IMMEDIATE")
            with pytest.raises(ApiError) as refused:
                await api.publish(channel, 2, idempotency_key="2")
            assert refused.value.code == 100
            assert await status(api, "/health/live") == 200
            thief.rollback()
        async with asyncio.timeout(10.0):
            while True:
                try:
                    offset = await api.publish(channel, 2, idempotency_key="2")
                    break
                except ApiError as error:
                    assert error.code == 100
        assert offset == 2
        assert await api.publish(channel, 3) == 3
        publications = await subscriber.publications(channel, 3)
        assert [pub["offset"] for pub in publications] == [1, 2, 3]
        assert [pub["data"] for pub in publications] == [1, 2, 3]
        assert await status(api, "/health/ready") == 200

"""A server whose DynamoDB goes away: what clients, publishers and health are told."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest

from service.stores.dynamodb.table import definition
from tests.harness import emulators
from tests.harness.api import ApiError
from tests.stores.dynamodb.support import Faults


@pytest.fixture
def own_emulator():
    """Return an emulator that a test may kill."""
    emulator = emulators.ministack().start()
    yield emulator
    emulator.close()


@pytest.mark.requirement("R15", "L23")
@pytest.mark.timeout(90)
async def test_without_dynamodb_publishes_fail_at_once_and_health_is_degraded(
    own_emulator, make_server
):
    settings = own_emulator.settings()
    Faults().connect(settings).create_table(**definition(settings))
    server = await make_server(
        {
            **own_emulator.credentials,
            "STEADWIRE_STORE_BACKEND": "dynamodb",
            "STEADWIRE_DYNAMODB_TABLE": settings.table,
            "STEADWIRE_DYNAMODB_REGION": settings.region,
            "STEADWIRE_DYNAMODB_ENDPOINT": settings.endpoint,
        }
    ).start()
    async with await server.raw() as client, server.api() as api:
        assert await api.publish("chat", {"n": 1}) == 1
        own_emulator.stop()
        for _ in range(20):
            assert await refusal(api) == 100
            if await health(api) == "degraded":
                break
        else:
            pytest.fail("it is never degraded")
        tries = 0

        def tried(_, writer):
            nonlocal tries
            tries += 1
            writer.close()

        port = urlsplit(settings.endpoint).port
        async with await asyncio.start_server(tried, "127.0.0.1", port):
            for _ in range(50):
                assert await refusal(api) == 100
        # Only whether it is back was tried, every four seconds at last.
        assert tries < 50
        # Clients stay, and are told that it is worth another try.
        reply = await client.request(publish={"channel": "chat", "data": 3})
        assert reply["error"] == {
            "code": 100,
            "message": "internal server error",
            "temporary": True,
        }


async def refusal(api):
    with pytest.raises(ApiError) as caught:
        await api.publish("chat", {"n": 2})
    return caught.value.code


async def health(api):
    response = await api.request("GET", "/health/ready")
    assert response.status == 200
    return response.json["status"]

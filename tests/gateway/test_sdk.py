"""Official SDKs through the gateway, to the HTTP_PROXY integration of a real server."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any

import boto3
import pytest

from service.core.clock import SystemClock
from service.dev_gateway.emulator import Gateway
from service.dev_gateway.integrations import HttpProxy
from service.stores.dynamodb.table import LEASES
from tests.conftest import SDKS
from tests.harness.backends import BACKENDS
from tests.harness.server import Server

MakeClient = Callable[..., Any]

NAMESPACES = [
    {"name": "plain", "presence": True, "join_leave": True},
    {
        "name": "chat",
        "history_size": 1000,
        "history_ttl": 300,
        "force_recovery": True,
        "presence": True,
        "allow_history_for_subscriber": True,
    },
]


class Stage:
    """A gateway before a server.

    Attributes:
        gateway: The emulator.
        server: The service.
    """

    def __init__(self, gateway: Gateway, server: Server) -> None:
        self.gateway = gateway
        self.server = server

    @property
    def url(self) -> str:
        return self.gateway.url


@pytest.fixture
async def stage(make_server: Callable[..., Server]) -> AsyncIterator[Stage]:
    secret = secrets.token_urlsafe(32)
    gateway = Gateway(lambda event: None, SystemClock())  # type: ignore[arg-type]
    async with gateway.run():
        table = BACKENDS["dynamodb"]()
        boto = boto3.session.Session().client(
            "dynamodb",
            region_name=table["STEADWIRE_DYNAMODB_REGION"],
            endpoint_url=table["STEADWIRE_DYNAMODB_ENDPOINT"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        boto.put_item(TableName=table["STEADWIRE_DYNAMODB_TABLE"], Item=LEASES)
        boto.close()
        server = make_server(
            {
                **table,
                "STEADWIRE_GATEWAY_ENDPOINT": gateway.endpoint,
                "STEADWIRE_GATEWAY_SECRET": secret,
                "STEADWIRE_CHANNELS_NAMESPACES": json.dumps(NAMESPACES),
            }
        )
        await server.start()
        proxy = HttpProxy(f"http://127.0.0.1:{server.port}/connection/gateway", secret)
        gateway.integration = proxy
        yield Stage(gateway, server)
        await proxy.aclose()


@pytest.mark.parametrize("make_client", SDKS, indirect=True)  # protobuf is refused
@pytest.mark.requirement("R43")
async def test_an_sdk_subscribes_publishes_and_recovers(
    stage: Stage, make_client: MakeClient, channel: str
) -> None:
    channel = f"chat:{channel}"
    one, two = [await make_client(stage.url) for _ in range(2)]
    await one.connect()
    await two.connect()
    subscribed = await one.subscribe(channel)
    assert subscribed["offset"] == 0 and subscribed["epoch"]
    await two.subscribe(channel)
    for number in range(10):
        await two.publish(channel, {"n": number})
    for client in (one, two):
        await client.seen("publication", 10)
        assert client.offsets(channel) == list(range(1, 11))
    # More than a reply may hold, while one of them is away.
    await one.cut()
    async with stage.server.api() as api:
        for number in range(10, 70):
            await api.publish(channel, {"n": number, "text": "x" * 1000})
    await one.seen("publication", 70)
    assert one.offsets(channel) == list(range(1, 71))
    await two.publish(channel, {"n": 71})
    for client in (one, two):
        await client.seen("publication", 71)
        assert client.offsets(channel) == list(range(1, 72))
    assert len(one.events["connected"]) == 2
    assert len(two.events["connected"]) == 1

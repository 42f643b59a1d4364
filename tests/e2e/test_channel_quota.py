"""How many channels a user's publishes create, on real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.harness.server import Server
from tests.harness.tokens import connection, settings

TOO_MANY = {"code": 111, "message": "too many requests", "temporary": True}


async def test_a_user_creates_few_channels_and_publishes_to_any_number(
    make_server: Callable[..., Server],
) -> None:
    namespaces = [
        {
            "name": "chat",
            "history_size": 10,
            "history_ttl": 60,
            "allow_publish_for_client": True,
            "allow_subscribe_for_client": True,
        },
        {"name": "live", "allow_publish_for_client": True},
    ]
    server = await make_server(
        settings(
            STEADWIRE_ENVIRONMENT="production",
            STEADWIRE_LIMITS_CHANNELS_PER_USER="0.001",
            STEADWIRE_LIMITS_BURST="3000",  # three at once
            STEADWIRE_LIMITS_COMMANDS_PER_CONNECTION="0",
            STEADWIRE_CHANNELS_NAMESPACES=json.dumps(namespaces),
        )
    ).start()

    async def publish(client: object, channel: str) -> object:
        reply = await client.request(publish={"channel": channel, "data": 1})  # type: ignore[attr-defined]
        return reply.get("error", "taken")

    async with server.api() as api:
        await api.publish("chat:0", 1)
        clients = []
        for user in ("ann", "ann", "bob"):
            client = await server.raw(connected=False)
            await client.connect(token=connection(user))
            clients.append(client)
        ann, tab, bob = clients
        assert [await publish(ann, f"chat:{n}") for n in range(4)] == ["taken"] * 4
        assert await publish(ann, "chat:4") == TOO_MANY
        assert await publish(tab, "chat:4") == TOO_MANY  # the same user
        assert await publish(ann, "chat:3") == "taken"  # it is there already
        assert await publish(ann, "live:4") == "taken"  # nothing is kept there
        # A subscriber creates nothing, and so has no way around it.
        reply = await tab.request(subscribe={"channel": "chat:4"})
        assert "error" not in reply
        assert await publish(ann, "chat:4") == TOO_MANY
        assert await publish(bob, "chat:4") == "taken"
        assert await publish(ann, "chat:4") == "taken"
        for n in range(10, 20):
            await api.publish(f"chat:{n}", 1)  # the server API may
        for client in clients:
            client.reset()

"""Environments of the service behind the gateway, on one table, without a gateway.

Each is what a Lambda environment or a container has; the gateway is `Sockets`, which
they share: it keeps what is posted to each connection, and fails when told to.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import jwt

from service.connections.refused_credentials import RefusedCredentials
from service.core.errors import StoreError
from service.core.hooks import Handlers
from service.core.model import Channel, ClientId, Draft, RawJson
from service.core.ports import Clock, Posted
from service.core.refusal_log import RefusalLog
from service.foundation import Foundation
from service.gateway.events import Answer, Arrival, Kind
from service.gateway_runtime import GatewayRuntime
from service.settings import Settings, load
from service.stores.dynamodb.client import Client
from service.stores.dynamodb.table import LEASES
from tests.harness.emulators import Emulator
from tests.stores.dynamodb.opening import make_table
from tests.stores.dynamodb.support import client_for

SECRET = "a secret of thirty-two bytes or more"

NAMESPACES = [
    {"name": "plain", "presence": True, "join_leave": True},
    {
        "name": "chat",
        "history_size": 1000,
        "history_ttl": 300,
        "force_recovery": True,
        "presence": True,
        "allowed_delta_types": ["fossil"],
    },
]


class Sockets:
    """`ports.Posts` on connections that are open until they are deleted.

    Attributes:
        messages: What reached each connection, decoded, in order.
        closed: Connections that were closed, in order.
        on_post: Asked before a POST; it may return an outcome in place of delivery.
    """

    def __init__(self) -> None:
        self.messages: dict[str, list[dict[str, Any]]] = {}
        self.closed: list[str] = []
        self.posts = 0
        self.on_post: Callable[[str, str], Awaitable[Posted | None]] | None = None

    async def post(self, client: ClientId, text: str) -> Posted:
        self.posts += 1
        assert len(text.encode()) <= 128 * 1024
        await asyncio.sleep(0)
        if self.on_post is not None:
            outcome = await self.on_post(client, text)
            if outcome is not None:
                return outcome
        if client not in self.messages or client in self.closed:
            return Posted.GONE
        self.messages[client] += [json.loads(line) for line in text.split("\n")]
        return Posted.DELIVERED

    async def delete(self, client: ClientId) -> bool:
        if client not in self.closed:
            self.closed.append(client)
        return True

    def take(self, client: str) -> list[dict[str, Any]]:
        taken, self.messages[client] = self.messages[client], []
        return taken

    def offsets(self, client: str, channel: str) -> list[int]:
        """Return the offsets that a client was given, in replies and pushes."""
        found: list[int] = []
        for message in self.messages[client]:
            push = message.get("push", {})
            if push.get("channel") == channel and "pub" in push:
                found.append(push["pub"]["offset"])
            for publication in message.get("subscribe", {}).get("publications", ()):
                found.append(publication["offset"])
        return found


class Environment:
    """One environment.

    Attributes:
        runtime: Its parts.
        base: Its foundation.
        refusals: What it refused.
    """

    def __init__(
        self,
        settings: Settings,
        sockets: Sockets,
        clock: Clock,
        handlers: Handlers,
        *,
        posts: bool = False,
    ) -> None:
        self._stack = AsyncExitStack()
        self.base = Foundation(settings, handlers, clock, self._stack)
        self.refusals = RefusalLog()
        refused = RefusedCredentials(settings.effective_limits, clock, self.refusals)
        self.runtime = GatewayRuntime(
            self.base, refused, posts=None if posts else sockets
        )
        self.sockets = sockets
        self._commands = 0

    async def open(self) -> Environment:
        await self.base.start(self.runtime.delivery.committed)
        self.base.people = self.runtime.people
        return self

    async def close(self) -> None:
        await self._stack.aclose()

    async def handle(self, kind: Kind, client: str, text: str = "") -> Answer:
        """Handle an event, and return when the environment could be frozen."""
        headers = {"origin": "https://page"} if kind is Kind.CONNECT else {}
        arrival = Arrival(
            kind, ClientId(client), address="192.0.2.1", text=text, headers=headers
        )
        answer = await self.runtime.application.handle(arrival)
        await self.runtime.delivery.drain()
        return answer

    async def say(self, client: str, *commands: dict[str, Any]) -> None:
        """Handle a frame."""
        text = "\n".join(json.dumps(command) for command in commands)
        await self.handle(Kind.MESSAGE, client, text)

    async def connect(self, client: str, **connect: Any) -> dict[str, Any]:
        """Open a socket and connect; return the reply."""
        answer = await self.handle(Kind.CONNECT, client)
        assert answer.status == 200
        self.sockets.messages[client] = []
        await self.say(client, {"id": 1, "connect": connect})
        [reply] = self.sockets.take(client)
        return reply

    async def publish(self, channel: str, *payloads: Any) -> None:
        """Publish as the server API does, and deliver."""
        rules = self.base.permissions.rules(channel)
        for payload in payloads:
            done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            self.runtime.delivery.publish(
                Channel(channel),
                Draft(RawJson(json.dumps(payload))),
                rules.history,
                done.set_result,
            )
            outcome = await done
            assert not isinstance(outcome, StoreError), outcome
        await self.runtime.delivery.drain()


class Environments:
    """Environments that share a table and a gateway.

    Attributes:
        sockets: The gateway.
        client: Calls the table.
    """

    def __init__(self, emulator: Emulator) -> None:
        self.table = emulator.settings()
        self.sockets = Sockets()
        self._opened: list[Environment] = []

    async def create(self, clock: Clock) -> Environments:
        self.client: Client = client_for(self.table, clock)
        await self.client.start()
        await make_table(self.client, self.table)
        request = {"TableName": self.table.table, "Item": LEASES}
        await self.client.call("put_item", request)
        return self

    async def open(
        self,
        clock: Clock,
        handlers: Handlers | None = None,
        *,
        posts: bool = False,
        **settings: str,
    ) -> Environment:
        """Open one more; one that *posts* does so to the endpoint of its settings."""
        environ = {
            "STEADWIRE_STORE_BACKEND": "dynamodb",
            "STEADWIRE_DYNAMODB_TABLE": self.table.table,
            "STEADWIRE_DYNAMODB_ENDPOINT": self.table.endpoint,
            "STEADWIRE_DYNAMODB_REGION": self.table.region,
            "STEADWIRE_GATEWAY_ENDPOINT": "https://gateway.test/prod",
            "STEADWIRE_CHANNELS_NAMESPACES": json.dumps(NAMESPACES),
            "STEADWIRE_CONNECTIONS_USER_LIMIT": "3",
            **settings,
        }
        loaded = load(environ, {})
        made = Environment(
            loaded, self.sockets, clock, handlers or Handlers(), posts=posts
        )
        self._opened.append(made)
        return await made.open()

    async def items(self) -> list[dict[str, Any]]:
        """Return every item of the table."""
        answer = await self.client.call("scan", {"TableName": self.table.table})
        found: list[dict[str, Any]] = answer["Items"]
        return found

    async def close(self) -> None:
        for each in self._opened:
            await each.close()
        await self.client.close()


def token(**claims: Any) -> str:
    """Return a connection token of *ann*, unless *claims* say otherwise."""
    return jwt.encode({"sub": "ann", "iat": int(time.time()) - 10, **claims}, SECRET)

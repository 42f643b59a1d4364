"""A stack with connection limits, and what must hold of its counts at any moment."""

from __future__ import annotations

from typing import Any

from service.core.hooks import ConnectEvent, ConnectResult, Handlers
from service.core.model import UserId
from service.settings import ConnectionSettings
from tests.session.stack import Client, Stack


async def as_the_token_says(event: ConnectEvent) -> ConnectResult:
    """Let everybody in as the user that the token names."""
    return ConnectResult(user=event.token)


class LimitedStack(Stack):
    """A stack with limits; the token of a connect is the user."""

    def __init__(self, **options: Any) -> None:
        limits = {"limit": 1000, **options.pop("limits", {})}
        super().__init__(
            handlers=Handlers(connect=as_the_token_says),
            connections=ConnectionSettings(**limits),
            **options,
        )

    def enter(
        self, user: str, *channels: str, address: str = "192.0.2.1", settle: bool = True
    ) -> Client:
        """Let a client ask to connect, and subscribe if it is let in."""
        client = self.open(address)
        client.say({"connect": {"token": user}})
        if settle:
            self.settle()
        for channel in channels:
            client.say({"subscribe": {"channel": channel, "join_leave": True}})
            if settle:
                self.settle()
        return client

    def turns(self) -> None:
        """Let what is due now happen."""
        self.clock.advance(0)
        self.settle()

    def inside(self, *clients: Client) -> list[bool]:
        """Tell which of *clients* are connected."""
        return [
            client.close_code is None and not client.over and 1 in client.replies
            for client in clients
        ]

    def check(self) -> None:
        """Hold every count to every other (R1)."""
        registry, clients = self.registry, self.clients
        here = [client for client in clients if not client.over]
        assert len(registry) == len(here)
        slots = list(registry.slots())
        assert len(slots) == registry.connected
        by_user: dict[str, int] = {}
        for record in slots:
            assert record.has_slot and not record.over
            by_user[record.user] = by_user.get(record.user, 0) + 1
            found = registry.of_user(record.user, record.client)
            assert found == [record.connection]
        assert registry.users == len(by_user)
        for user, count in by_user.items():
            assert len(registry.of_user(UserId(user))) == count
            if user:
                assert count <= self.settings.connections.user_limit
        assert len(slots) <= self.settings.connection_limit
        heartbeat = self.heartbeat
        pending = sum(one.liveness.pending for one in registry)
        assert heartbeat.sent == heartbeat.answered + heartbeat.orphaned + pending

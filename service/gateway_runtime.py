"""The service behind an API Gateway, built on the foundation of a process."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from uuid import uuid4

import msgspec

from service.connections.hook_health import HookHealth
from service.connections.refused_credentials import RefusedCredentials
from service.core.clock import SystemClock
from service.core.model import ClientId
from service.core.people import People
from service.core.ports import Posts
from service.foundation import Foundation
from service.gateway.application import GatewayApplication
from service.gateway.context import GatewayContext
from service.gateway.delivery import GatewayDelivery, LocalSubscribers
from service.gateway.invoking import LambdaInvoker, invoke_endpoint
from service.gateway.people import GatewayPeople
from service.gateway.posting import CallbackPosts
from service.gateway.rounds import Rounds
from service.gateway.signed_calls import SignedCalls
from service.gateway.sweeper import Sweeper
from service.gateway.upkeep import GatewayUpkeep
from service.session.command_queue import CommandLimits
from service.session.liveness_stats import LivenessStats
from service.settings import ClientSettings, Settings
from service.stores.dynamodb.registry.connections import AdmissionLimits
from service.stores.dynamodb.registry.maintenance import Maintenance
from service.stores.dynamodb.sessions import DynamodbSessions
from service.stores.dynamodb.store import DynamodbStore
from service.stores.dynamodb.subscribers import KEPT
from service.stores.factory import make_upkeep

__all__ = ["GatewayRuntime"]

NEVER = float("inf")

CLOSING = 3.0  # s


class GatewayRuntime:
    """The parts that serve clients whose sockets end at the gateway.

    Args:
        base: The parts that every way to serve clients needs, not started: its store's
            listener is `delivery.committed`.
        refused: Credentials that were refused in this process.
        local: The subscribers of this process; None where it has none.
        posts: Writes to connections; through the gateway by default.
        hook_health: Counts failed calls of hooks; that of this process, if it has one.

    Attributes:
        application: Handles the events of sockets.
        delivery: Delivers what is published; an environment drains it.
        people: The connections of users.
        posts: Writes to connections.
        upkeep: What the sweeper has done.

    Raises:
        AssertionError: The store is not DynamoDB; the settings were not checked.
    """

    def __init__(
        self,
        base: Foundation,
        refused: RefusedCredentials,
        local: LocalSubscribers | None = None,
        posts: Posts | None = None,
        hook_health: HookHealth | None = None,
    ) -> None:
        settings, clock, store = base.settings, base.clock, base.store
        if not isinstance(store, DynamodbStore):
            raise AssertionError("the gateway needs DynamoDB")
        self._base, self._store = base, store
        own = settings.gateway
        session = store.client.session
        self._calls = [
            SignedCalls(
                own.endpoint, "execute-api", settings.dynamodb.region, session, clock
            )
        ]
        self.posts = posts or CallbackPosts(self._calls[0], clock, base.rng)
        invoker = None
        if own.function:
            url = invoke_endpoint(session, settings.dynamodb.region)
            calls = SignedCalls(url, "lambda", settings.dynamodb.region, session, clock)
            self._calls.append(calls)
            invoker = LambdaInvoker(calls, own.function)
        sessions = DynamodbSessions(
            store.client,
            store.subscribers,
            AdmissionLimits(
                settings.user_limit,
                settings.connections.address_limit,
                settings.connections.policy,
                KEPT,
            ),
            clock,
            client_limit=settings.dynamodb.client_limit,
            timeout=settings.dynamodb.timeout,
            origin=lambda: store.origin,
        )
        rounds = Rounds(
            store.leases,
            store.subscribers,
            store.leases,
            self.posts,
            clock,
            token=lambda: uuid4().hex,
            forget=self._forget,
        )
        registry = make_upkeep(store, settings, clock, lambda client: None)
        assert isinstance(registry, Maintenance)  # the store is DynamoDB
        self.delivery = GatewayDelivery(
            store,
            rounds,
            base.spawn,
            present=registry.cluster.present,
            invoker=invoker,
            local=local,
        )
        store.holder = self.delivery
        for each in self._calls:
            base.last.push_async_callback(each.close)
        self._context = context = GatewayContext(
            client=_client_settings(settings),
            insecure=settings.insecure,
            permissions=base.permissions,
            handlers=base.handlers,
            revocations=base.revocations,
            encoder=base.encoder,
            clock=clock,
            rng=Random(),
            version=base.node.version,
            metrics=base.metrics,
            refused=refused,
            hook_health=hook_health or HookHealth(clock, base.metrics),
            liveness_stats=LivenessStats(NEVER),
            limits=CommandLimits(settings.effective_limits),
            sessions=sessions,
            subscribers=store.subscribers,
            posts=self.posts,
            delivery=self.delivery,
            spawn=base.spawn,
        )
        self.people = GatewayPeople(context)
        self.upkeep = GatewayUpkeep(
            context, self.people, rounds, registry.recount_if_due
        )
        sweeper = Sweeper(
            sessions,
            self.posts,
            self.upkeep,
            store.state,
            base.revocations,
            clock,
            ping_every=own.ping_interval - 2 * own.sweep_interval,
            stale_timeout=settings.client.stale_timeout,
        )
        headers = tuple(name.lower() for name in settings.proxy.http_headers)
        self.application = GatewayApplication(context, headers, sweeper.sweep)

    def serve_also(self, local: People) -> None:
        """Do what is done to users to the connections of this process too."""
        self.people = GatewayPeople(self._context, local)

    async def start(self) -> None:
        """Find the credentials.

        Raises:
            StartupError: There are none.
        """
        for calls in self._calls:
            await calls.start()

    async def keep_sweeping(self) -> None:
        """Do the time-driven work every `sweep_interval`, for ever."""
        while True:
            await asyncio.sleep(self._base.settings.gateway.sweep_interval)
            await self.application.sweep()

    async def close(self) -> None:
        """Hand over what is being delivered, or end it within `CLOSING`.

        A delivery that is cut off is taken over when its lease has expired.
        """
        self.delivery.until = self._base.clock.now()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.delivery.drain(), CLOSING)

    def thawed(self) -> None:
        """Trust nothing of before: this process may have been frozen."""
        if isinstance(self._base.clock, SystemClock):
            self._base.clock.anchor()
        for calls in self._calls:
            calls.drop_idle()
        self._store.distrust()

    async def _forget(self, client: ClientId) -> None:
        await self._context.forget(client)


def _client_settings(settings: Settings) -> ClientSettings:
    """Return the limits of each client, as they are at the gateway."""
    return msgspec.structs.replace(
        settings.client, ping_interval=settings.gateway.ping_interval
    )

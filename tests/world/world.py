"""The parts that connections share, built as the runtime builds them.

Two worlds stand on them. `scripted.ScriptedWorld` has no event loop: reads, commits,
hooks and flushes happen when a test says so. `loop.LoopWorld` runs on the event loop
with the SQLite store, for what only tasks, cancellation and a peer that stops reading
can show. A session alone, without a hub, is `tests.session.bench.Bench`: there the test
itself is the hub and names each outcome, which a hub would not let it do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

from service.auth.permissions import Permissions
from service.connections.context import ConnectionContext
from service.connections.drain import Drain
from service.connections.flusher import Flusher
from service.connections.grace_period import GracePeriod
from service.connections.hook_health import HookHealth
from service.connections.limits import ConnectionLimits
from service.connections.reaper import Reaper
from service.connections.registry import Registry
from service.connections.timer_wheel import TimerWheel
from service.core.hooks import Handlers
from service.core.model import ClientId
from service.core.ports import Clock, Store
from service.core.rate_limits import rate_of
from service.core.shedding import Shedding
from service.hub.hub import Hub
from service.hub.publish_metrics import PublishMetrics
from service.metrics import Metrics
from service.payload.encoder import PayloadEncoder
from service.session.liveness_stats import LivenessStats
from service.settings import (
    ChannelOptions,
    ChannelSettings,
    Namespace,
    PersonalChannel,
    Settings,
)

CHANNELS = ChannelSettings(
    without_namespace=ChannelOptions(
        history_size=10,
        history_ttl=60.0,
        force_recovery=True,
        presence=True,
        join_leave=True,
    ),
    namespaces=(
        Namespace(name="plain"),
        Namespace(name="numbers", channel_regex="[0-9]+"),
        Namespace(name="asks", history_size=10, history_ttl=60.0, allow_recovery=True),
    ),
)


class World:
    """The hub, the registry and what a process has once, around a given store.

    A subclass says how `spawn` runs work that waits.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        store: Store,
        call_soon: Callable[[Callable[[], None]], object],
        handlers: Handlers | None = None,
        *,
        insecure: bool = True,
        personal: PersonalChannel | None = None,
    ) -> None:
        self.settings = settings
        flusher, metrics = Flusher(call_soon, clock), Metrics()
        published = PublishMetrics(metrics, clock, flusher)
        self.shedding = Shedding(settings.overload.calm, Random(1))
        permissions = Permissions(
            settings.channels,
            insecure=insecure,
            personal=personal or PersonalChannel(),
        )
        self.hub = Hub(
            store,
            settings.client,
            clock,
            self.spawn,
            published,
            self.shedding,
            permissions.batch_window,
        )
        self.registry = Registry()
        limits, rates = settings.connections, settings.effective_limits
        self.grace_period = GracePeriod(self.hub.end_grace, clock, limits.parked)
        self.limits = ConnectionLimits(
            self.registry,
            limits,
            limit=settings.connection_limit,
            user_limit=settings.user_limit,
            clock=clock,
            spawn=self.spawn,
            grace_period=self.grace_period,
            connects=rate_of(rates.connects_per_user, rates.burst),
        )
        self.liveness_stats = LivenessStats(settings.heartbeat_timeout)
        self.reaper = Reaper(
            self.registry,
            clock,
            Random(1),
            period=limits.sweep_interval,
            idle_ttl=limits.idle_ttl,
        )
        self.drain = Drain(self.registry, clock, Random(1), time=settings.drain_time)
        self.context = ConnectionContext(
            settings=settings,
            encoder=PayloadEncoder(clock),
            hub=self.hub,
            permissions=permissions,
            handlers=handlers or Handlers(),
            clock=clock,
            wheel=TimerWheel(clock, longest=0.0),  # every time as it was asked for
            flusher=flusher,
            rng=Random(1),
            new_client=self._new_client,
            spawn=self.spawn,
            version="test",
            metrics=metrics,
            shedding=self.shedding,
            registry=self.registry,
            limits=self.limits,
            liveness_stats=self.liveness_stats,
            grace_period=self.grace_period,
            drain=self.drain,
            hook_health=HookHealth(clock, metrics),
        )
        self._named = 0

    @property
    def channels(self) -> int:
        return len(self.hub.counts())

    @property
    def subscriptions(self) -> int:
        return sum(self.hub.counts().values())

    def spawn(self, work: Awaitable[None]) -> None:
        raise NotImplementedError

    def _new_client(self) -> ClientId:
        self._named += 1
        return ClientId(f"client{self._named}")

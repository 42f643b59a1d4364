"""The parts that all connections of a process share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from service.auth.permissions import Permissions
from service.connections.drain import Drain
from service.connections.flusher import Flusher
from service.connections.grace_period import GracePeriod
from service.connections.hook_health import HookHealth
from service.connections.limits import ConnectionLimits
from service.connections.registry import Registry
from service.connections.timer_wheel import TimerWheel
from service.core.hooks import Handlers
from service.core.model import ClientId
from service.core.ports import Clock
from service.core.shedding import Shedding
from service.hub.hub import Hub
from service.metrics import Metrics
from service.payload.encoder import PayloadEncoder
from service.session.liveness_stats import LivenessStats
from service.settings import Settings

__all__ = ["ConnectionContext"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionContext:
    """The parts that all connections of a process share.

    Attributes:
        settings: The process's.
        hub: Channels and delivery.
        encoder: Makes JSON text of what hooks answer.
        permissions: Decide about channels.
        handlers: The hooks.
        clock: Of everything.
        wheel: Has the timers of the connections.
        flusher: Flushes the outboxes at the end of the loop's turn.
        rng: Spreads pings and ages.
        new_client: Makes the id of a connection.
        spawn: Runs a coroutine in the background, and logs what it raises.
        version: Shown to clients.
        metrics: Counts.
        shedding: Tells what is refused while the process is overloaded.
        registry: Holds the connections.
        limits: Gives slots, and takes them back.
        liveness_stats: The timeout of silence; counts of pings and of levels.
        grace_period: Holds back the leaves of lost connections.
        drain: Tells whether more clients and subscriptions are taken.
        hook_health: Counts the calls of hooks without a usable answer.
    """

    settings: Settings
    hub: Hub
    encoder: PayloadEncoder
    permissions: Permissions
    handlers: Handlers
    clock: Clock
    wheel: TimerWheel
    flusher: Flusher
    rng: Random
    new_client: Callable[[], ClientId]
    spawn: Callable[[Awaitable[None]], object]
    version: str
    metrics: Metrics
    shedding: Shedding
    registry: Registry
    limits: ConnectionLimits
    liveness_stats: LivenessStats
    grace_period: GracePeriod
    drain: Drain
    hook_health: HookHealth

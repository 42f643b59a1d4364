"""What all connections share, made once by the application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from service.auth.permissions import Permissions
from service.connections.grace_period import GracePeriod
from service.connections.limits import ConnectionLimits
from service.connections.outbox import Flusher
from service.connections.reaper import Reaper
from service.connections.registry import Registry
from service.core.health import Checks
from service.core.hooks import Handlers
from service.core.model import ClientId
from service.core.ports import Clock
from service.hub.hub import Hub
from service.hub.subscription import Subscription
from service.metrics import Metrics
from service.session.heartbeat import Heartbeat
from service.settings import Settings

if TYPE_CHECKING:
    from service.connections.connection import ClientConnection

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """What all connections share."""

    settings: Settings
    hub: Hub
    permissions: Permissions
    handlers: Handlers
    clock: Clock
    flusher: Flusher
    random: Random
    new_client: Callable[[], ClientId]
    spawn: Callable[[Awaitable[None]], object]
    version: str
    connections: Registry[ClientConnection]
    admission: ConnectionLimits[ClientConnection]
    heartbeat: Heartbeat
    parking: GracePeriod[Subscription]
    sweep: Reaper[ClientConnection]
    metrics: Metrics
    checks: Checks

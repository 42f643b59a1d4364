"""What all connections share, made once by the application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from service.admission import Admission
from service.handlers import Handlers
from service.health import Checks
from service.heartbeat import Heartbeat
from service.hub.fanout import Hub
from service.hub.subscription import Subscription
from service.metrics import Metrics
from service.model import ClientId
from service.outbox import Flusher
from service.parking import Parking
from service.permissions import Permissions
from service.ports import Clock
from service.registry import Registry
from service.settings import Settings
from service.sweep import Sweep

if TYPE_CHECKING:
    from service.transports.driver import Driver

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
    connections: Registry[Driver]
    admission: Admission[Driver]
    heartbeat: Heartbeat
    parking: Parking[Subscription]
    sweep: Sweep[Driver]
    metrics: Metrics
    checks: Checks

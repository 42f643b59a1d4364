"""What the rest of the process uses of a running service."""

from __future__ import annotations

from dataclasses import dataclass

from service.auth.permissions import Permissions
from service.connections.connection import ConnectionContext
from service.connections.grace_period import GracePeriod
from service.connections.limits import ConnectionLimits
from service.connections.reaper import Reaper
from service.connections.registry import Registry
from service.core.health import Checks
from service.core.ports import Clock
from service.hub.hub import Hub
from service.metrics import Metrics
from service.session.heartbeat import Heartbeat

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running service; `context` is what each connection is given."""

    hub: Hub
    permissions: Permissions
    clock: Clock
    version: str
    connections: Registry
    admission: ConnectionLimits
    heartbeat: Heartbeat
    parking: GracePeriod
    sweep: Reaper
    metrics: Metrics
    checks: Checks
    context: ConnectionContext

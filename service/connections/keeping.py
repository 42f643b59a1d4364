"""What keeps the connections of one process: made together, since it works together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from service.connections.cluster_sync import ClusterSync, Shared
from service.connections.grace_period import GracePeriod
from service.connections.limits import ConnectionLimits
from service.connections.reaper import Reaper
from service.connections.registry import Registry
from service.core.ports import Clock
from service.core.rate_limits import rate_of
from service.hub.hub import Hub
from service.session.heartbeat import Heartbeat
from service.settings import Settings

__all__ = ["keep"]


@dataclass(frozen=True, slots=True)
class Keeping:
    """Who acts on the registry."""

    admission: ConnectionLimits
    heartbeat: Heartbeat
    parking: GracePeriod
    sweep: Reaper
    attendance: ClusterSync | None

    def start(self) -> None:
        """Begin to look after the connections."""
        self.sweep.start()
        if self.attendance is not None:
            self.attendance.start()

    async def close(self) -> None:
        """Look after nobody any more."""
        self.sweep.stop()
        self.parking.clear()
        if self.attendance is not None:
            await self.attendance.close()


def keep(
    settings: Settings,
    registry: Registry,
    hub: Hub,
    clock: Clock,
    random: Random,
    spawn: Callable[[Awaitable[None]], object],
    shared: Shared | None = None,
) -> Keeping:
    """Make what keeps the connections in *registry*; it has yet to be started."""
    limits, rates = settings.connections, settings.effective_limits
    parking = GracePeriod(hub.unpark, clock, limits.parked)
    admission = ConnectionLimits(
        registry,
        limits,
        limit=settings.connection_limit,
        clock=clock,
        spawn=spawn,
        parking=parking,
        directory=None if shared is None else shared.directory,
        connects=rate_of(rates.connects_per_user, rates.burst),
    )
    attendance = None
    if shared is not None:
        attendance = ClusterSync(registry, admission, shared, clock, spawn)
    return Keeping(
        admission,
        Heartbeat(settings.heartbeat_timeout),
        parking,
        Reaper(
            registry,
            clock,
            random,
            period=limits.sweep_interval,
            idle_ttl=limits.idle_ttl,
        ),
        attendance,
    )

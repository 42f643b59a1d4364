"""Cluster sync: exchanges this process's connections with the deployment's directory.

Once a minute it reports when each client was last active; every second it asks which
clients lost their slots to others, and closes them. One call of each kind is under way
at a time, so a slow directory is called less often. One that does not answer costs only
the places that it holds: they expire there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from service.connections.limits import ConnectionLimits
from service.connections.registry import Registry
from service.core.errors import StoreError
from service.core.ports import Clock, Directory, Timer

__all__ = ["EVICTIONS_PERIOD", "ClusterSync"]

EVICTIONS_PERIOD = 1.0  # s between questions which clients lost their slots
REPORT_PERIOD = 60.0  # s between reports when clients were active


class Shared(Protocol):
    """A directory that this process has entered."""

    @property
    def directory(self) -> Directory:
        """The directory."""

    async def close(self) -> None:
        """Leave the directory."""


class ClusterSync:
    """The cluster sync of one process.

    Args:
        registry: The connections of this process.
        limits: Closes connections.
        shared: The directory of the deployment, which this process has entered.
        clock: Of the timers.
        spawn: Runs what waits for the directory.
    """

    def __init__(
        self,
        registry: Registry,
        limits: ConnectionLimits,
        shared: Shared,
        clock: Clock,
        spawn: Callable[[Awaitable[None]], object],
    ) -> None:
        self._registry = registry
        self._limits = limits
        self._shared = shared
        self._directory = shared.directory
        self._clock = clock
        self._spawn = spawn
        self._timer: Timer | None = None
        self._asking = False
        self._reporting = False
        self._report_at = 0.0

    def start(self) -> None:
        """Begin."""
        self._report_at = self._clock.now() + REPORT_PERIOD
        self._wind()

    async def close(self) -> None:
        """End both, and leave the directory."""
        if self._timer is not None:
            self._timer.cancel()
        await self._shared.close()

    def _wind(self) -> None:
        self._timer = self._clock.call_at(
            self._clock.now() + EVICTIONS_PERIOD, self._tick
        )

    def _tick(self) -> None:
        self._wind()
        if not self._asking:
            self._asking = True
            self._spawn(self._ask())
        now = self._clock.now()
        if now >= self._report_at and not self._reporting:
            self._report_at = now + REPORT_PERIOD
            self._reporting = True
            self._spawn(self._report())

    async def _ask(self) -> None:
        try:
            with suppress(StoreError):  # it will return them again
                self._limits.evict(await self._directory.evictions())
        finally:
            self._asking = False

    async def _report(self) -> None:
        offset = self._clock.wall() - self._clock.now()
        active = {slot.client: slot.active + offset for slot in self._registry.slots()}
        try:
            with suppress(StoreError):  # the next report has all again
                await self._directory.touch(active)
        finally:
            self._reporting = False

"""Cluster sync: exchanges this process's connections with the deployment's directory.

Once a minute it reports when each client was last active; every period it asks which
clients lost their slots to others, and closes them, and has all looked at that others
leave for this process (`looks`). One call of each kind is under way at a time, so a
slow directory is called less often. One that does not answer costs only the places that
it holds: they expire there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol

from service.connections.limits import ConnectionLimits
from service.connections.registry import Registry
from service.core.errors import StoreError
from service.core.ports import Clock, Directory, Timer

__all__ = ["ClusterSync"]

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
        looks: Called every period; a `StoreError` means: again in the next.
        period: Seconds.
    """

    def __init__(
        self,
        registry: Registry,
        limits: ConnectionLimits,
        shared: Shared,
        clock: Clock,
        spawn: Callable[[Awaitable[None]], object],
        *,
        looks: Sequence[Callable[[], Awaitable[None]]] = (),
        period: float = 1.0,
    ) -> None:
        self._registry = registry
        self._limits = limits
        self._shared = shared
        self._directory = shared.directory
        self._clock = clock
        self._spawn = spawn
        self._timer: Timer | None = None
        self._looks = (self._ask, *looks)
        self._looking: set[int] = set()  # their indices
        self._again: set[int] = set()  # those asked for meanwhile, by a hint
        self._period = period
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
        self._timer = self._clock.call_at(self._clock.now() + self._period, self._tick)

    def _tick(self) -> None:
        self._wind()
        for index in range(len(self._looks)):
            if index not in self._looking:
                self._begin(index)
        now = self._clock.now()
        if now >= self._report_at and not self._reporting:
            self._report_at = now + REPORT_PERIOD
            self._reporting = True
            self._spawn(self._report())

    def look(self) -> None:
        """Look now; at what is being looked at, once more after that."""
        for index in range(len(self._looks)):
            if index in self._looking:
                self._again.add(index)
            else:
                self._begin(index)

    def _begin(self, index: int) -> None:
        self._looking.add(index)
        self._spawn(self._look(index))

    async def _look(self, index: int) -> None:
        try:
            with suppress(StoreError):  # all is there the next time, too
                await self._looks[index]()
        finally:
            self._looking.discard(index)
            if index in self._again:
                self._again.discard(index)
                self._begin(index)

    async def _ask(self) -> None:
        self._limits.evict(await self._directory.evictions())

    async def _report(self) -> None:
        offset = self._clock.wall() - self._clock.now()
        active = {slot.client: slot.active + offset for slot in self._registry.slots()}
        try:
            with suppress(StoreError):  # the next report has all again
                await self._directory.touch(active)
        finally:
            self._reporting = False

"""Tells the directory of a deployment who is here, and closes who lost a place there.

Once a minute it says when each client was last active; every second it asks who has to
go. One question of each kind is under way at a time, so a slow directory is asked less
often, and one that does not answer costs nothing but that: its places are what is lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

from service.connections.limits import ConnectionLimits
from service.connections.registry import Registry
from service.core.errors import StoreError
from service.core.ports import Clock, Directory, Timer

__all__ = ["ASKED", "ClusterSync"]

ASKED = 1.0  # s between questions who has to go
TOLD = 60.0  # s between reports of who was active


class Shared(Protocol):
    """A directory that this process has entered."""

    @property
    def directory(self) -> Directory:
        """The directory."""
        ...

    async def close(self) -> None:
        """Leave the directory."""
        ...


class ClusterSync:
    """The attendance of one process.

    Args:
        registry: Who is here.
        admission: Closes connections.
        shared: The directory of the deployment, in which this process is.
        clock: Of the timers.
        spawn: Runs what waits for the directory.
    """

    def __init__(
        self,
        registry: Registry,
        admission: ConnectionLimits,
        shared: Shared,
        clock: Clock,
        spawn: Callable[[Awaitable[None]], object],
    ) -> None:
        self._registry = registry
        self._admission = admission
        self._shared = shared
        self._directory = shared.directory
        self._clock = clock
        self._spawn = spawn
        self._timer: Timer | None = None
        self._asking = False
        self._telling = False
        self._tell_at = 0.0

    def start(self) -> None:
        """Begin."""
        self._tell_at = self._clock.now() + TOLD
        self._wind()

    async def close(self) -> None:
        """Ask and tell no more, and leave the directory."""
        if self._timer is not None:
            self._timer.cancel()
        await self._shared.close()

    def _wind(self) -> None:
        self._timer = self._clock.call_at(self._clock.now() + ASKED, self._turn)

    def _turn(self) -> None:
        self._wind()
        if not self._asking:
            self._asking = True
            self._spawn(self._ask())
        now = self._clock.now()
        if now >= self._tell_at and not self._telling:
            self._tell_at = now + TOLD
            self._telling = True
            self._spawn(self._tell())

    async def _ask(self) -> None:
        try:
            with suppress(StoreError):  # they are told of again
                self._admission.evict(await self._directory.evictions())
        finally:
            self._asking = False

    async def _tell(self) -> None:
        offset = self._clock.wall() - self._clock.now()
        active = {slot.client: slot.active + offset for slot in self._registry.slots()}
        try:
            with suppress(StoreError):  # in a minute, again
                await self._directory.touch(active)
        finally:
            self._telling = False

"""Deadline timer of a connection: one timer for all of its times."""

from __future__ import annotations

from collections.abc import Callable

from service.core.ports import Clock, Timer

__all__ = ["DeadlineTimer"]


class DeadlineTimer:
    """A timer that rings at the earliest time asked for, until it is asked again.

    It is never moved later, only found to be early: so a pong costs nothing.
    """

    __slots__ = ("_at", "_clock", "_ring", "_timer")

    def __init__(self, clock: Clock, ring: Callable[[], object]) -> None:
        self._clock = clock
        self._ring = ring
        self._timer: Timer | None = None
        self._at = float("inf")

    def by(self, due: float) -> None:
        """Ring at *due*, or earlier if it was asked to."""
        if due < self._at:
            self.stop()
            self._at = due
            self._timer = self._clock.call_at(due, self._due)

    def last(self, due: float, ring: Callable[[], object]) -> None:
        """Call *ring* at *due*, and nothing else."""
        self.stop()
        self._ring = ring
        self.by(due)

    def stop(self) -> None:
        """Do not ring."""
        self._at = float("inf")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _due(self) -> None:
        self._timer = None
        self._at = float("inf")
        self._ring()

"""A clock that stands still until it is told to move."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class VirtualTimer:
    """A call asked of a `VirtualClock`."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], object]) -> None:
        self.when = when
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """The `Clock` port without real time: `advance` moves it and calls timers.

    Timers are called from inside `advance`, in the order of their times (those of
    one time in the order they were asked for), with `now` at the timer's own time.
    A timer asked for by a callback is called in the same `advance` if it is due.
    """

    def __init__(self, now: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self._now = now
        self._epoch = wall - now
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._serial = itertools.count()

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._epoch + self._now

    def jump(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator does."""
        self._epoch += seconds

    def call_at(self, when: float, callback: Callable[[], object]) -> VirtualTimer:
        timer = VirtualTimer(when, callback)
        heapq.heappush(self._timers, (when, next(self._serial), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Move *seconds* ahead; 0 calls what is due by now."""
        until = self._now + seconds
        while self._timers and self._timers[0][0] <= until:
            when, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._now = max(self._now, when)
                callback()
        self._now = until

    def stall(self, seconds: float) -> None:
        """Move as a blocked event loop does: what was due meanwhile is called late."""
        self._now += seconds
        self.advance(0.0)

    @property
    def pending(self) -> list[float]:
        """The times of the timers that wait, soonest first."""
        return sorted(
            when for when, _, timer in self._timers if timer.callback is not None
        )

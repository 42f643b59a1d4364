"""What was refused, counted by cause, and logged at a bounded rate."""

from __future__ import annotations

from collections import Counter
from functools import partial

import structlog

from service.ports import Clock, Timer

__all__ = ["Refusals"]

_PAUSE = 10.0  # s between two lines about one cause

log = structlog.get_logger("steadwire")


class Refusals:
    """Counts by cause, of which there are a few, and log lines.

    The first refusal is logged at once; those within the next ten seconds are one line
    at their end. So an attack writes six lines a minute for each cause, and none is
    left out of the counts.

    Attributes:
        counts: Refusals so far by cause.
    """

    def __init__(self, clock: Clock) -> None:
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._more: Counter[str] = Counter()
        self._timers: dict[str, Timer] = {}

    def add(self, cause: str, address: str) -> None:
        """Count and log a refusal of somebody at *address*."""
        self.counts[cause] += 1
        if cause in self._timers:
            self._more[cause] += 1
            return
        log.warning("refused", cause=cause, address=address)
        self._pause(cause)

    def close(self) -> None:
        """Log what is still to be logged, and keep no timer."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for cause, more in self._more.items():
            log.warning("refused", cause=cause, more=more)
        self._more.clear()

    def _pause(self, cause: str) -> None:
        when = self._clock.now() + _PAUSE
        self._timers[cause] = self._clock.call_at(when, partial(self._end, cause))

    def _end(self, cause: str) -> None:
        del self._timers[cause]
        more = self._more.pop(cause, 0)
        if more:
            log.warning("refused", cause=cause, more=more)
            self._pause(cause)

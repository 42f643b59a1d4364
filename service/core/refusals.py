"""What was refused at the door: counted by cause, and logged at a bounded rate."""

from __future__ import annotations

from collections import Counter

import structlog

__all__ = ["Refusals"]

_PAUSE = 10.0  # s between two lines about one cause

log = structlog.get_logger("steadwire")


class Refusals:
    """Counts by cause, of which there are a few, and log lines.

    The first refusal is logged at once, and then one in ten seconds for each cause,
    with the number of those before it that were not logged. So an attack writes six
    lines a minute, and each of its sockets is counted.

    Attributes:
        counts: Refusals so far by cause.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._silent: Counter[str] = Counter()
        self._again: dict[str, float] = {}

    def add(self, cause: str, address: str, now: float) -> None:
        """Count, and perhaps log, a refusal of somebody at *address*."""
        self.counts[cause] += 1
        if now < self._again.get(cause, now):
            self._silent[cause] += 1
            return
        self._again[cause] = now + _PAUSE
        silent = self._silent.pop(cause, 0)
        more = {"not_logged": silent} if silent else {}
        log.warning("refused", cause=cause, address=address, **more)

    def close(self) -> None:
        """Log how many were not logged."""
        for cause, silent in self._silent.items():
            log.warning("refused", cause=cause, not_logged=silent)
        self._silent.clear()

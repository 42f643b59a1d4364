"""Log of refused clients at a bounded rate, with a count of each cause."""

from __future__ import annotations

import logging
from collections import Counter

import structlog

__all__ = ["RefusalLog"]

_PAUSE = 10.0  # s between two lines about one cause

log = structlog.get_logger("steadwire")


class RefusalLog:
    """Counter and log of refusals by cause; the causes are a small fixed set.

    The first refusal of a cause is logged at once, then one each ten seconds with the
    number of refusals that were not logged before it. So an attack writes six lines a
    minute, and each of its sockets is counted.

    Args:
        level: Of the lines, as in `logging`.

    Attributes:
        counts: Refusals so far by cause.
    """

    def __init__(self, level: int = logging.WARNING) -> None:
        self._level = level
        self.counts: Counter[str] = Counter()
        self._silent: Counter[str] = Counter()
        self._again: dict[str, float] = {}

    def add(self, cause: str, address: str, now: float, **details: str) -> None:
        """Count a refusal, and log it if its cause is due.

        Args:
            cause: The rule that refused.
            address: The peer's; "" where the log has it under the connection.
            now: As `Clock.now`.
            details: More for the line: what was refused, and the setting to change.
        """
        self.counts[cause] += 1
        if now < self._again.get(cause, now):
            self._silent[cause] += 1
            return
        self._again[cause] = now + _PAUSE
        silent = self._silent.pop(cause, 0)
        more = {"not_logged": silent} if silent else {}
        where = {"address": address} if address else {}
        log.log(self._level, "refused", cause=cause, **where, **details, **more)

    def close(self) -> None:
        """Log the number of refusals that were not logged, for each cause."""
        for cause, silent in self._silent.items():
            log.log(self._level, "refused", cause=cause, not_logged=silent)
        self._silent.clear()

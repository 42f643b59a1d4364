"""The log of calls of the server API that are bad requests.

The answer is code 107 and no more, as in the reference server, so the log says which
field it was. A line names fields and types, never what is in them.
"""

from __future__ import annotations

import structlog

from service.core.ports import Clock

__all__ = ["RefusedCalls"]

_LINES = 5  # in each second: enough for somebody who tries one after another

log = structlog.get_logger("steadwire")


class RefusedCalls:
    """Logs them, at most five in a second; the next line counts those in between.

    Args:
        clock: Times the seconds.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.now()
        self._lines = 0
        self._silent = 0

    def add(self, method: str, key: str, reason: str) -> None:
        """Log that a call with *key* was refused for *reason*."""
        now = self._clock.now()
        if now - self._since >= 1.0:
            self._since, self._lines = now, 0
        if self._lines == _LINES:
            self._silent += 1
            return
        self._lines += 1
        more = {"not_logged": self._silent} if self._silent else {}
        self._silent = 0
        log.info("bad request", method=method, key=key, reason=reason, **more)

"""Health of the hooks: those that fail again and again, until one call is answered.

A hook that has failed `FAILURES` times in a row degrades the service; an answer, a
refusal by the hook among them, ends that, and so do `FORGOTTEN` seconds without a
failure: nobody may be calling. It never makes the service unavailable: others ask
the same hooks, and the clients that are connected are served.
"""

from __future__ import annotations

from service.core.health import Fault
from service.core.ports import Clock
from service.metrics import Metrics

__all__ = ["HookHealth"]

FAILURES = 3  # in a row
FORGOTTEN = 60.0  # s after the last failure


class HookHealth:
    """Counts the calls of hooks that had no usable answer.

    Args:
        clock: Tells how long ago the last failure was.
        metrics: Counts them too.
    """

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._failures: dict[str, tuple[int, float]] = {}  # in a row, and the last

    def failed(self, hook: str) -> None:
        """Note a call without a usable answer."""
        self._metrics.hook_failures.add(hook)
        now = self._clock.now()
        count, last = self._failures.get(hook, (0, now))
        fresh = now - last < FORGOTTEN
        self._failures[hook] = (count + 1 if fresh else 1, now)

    def answered(self, hook: str) -> None:
        """Note a call with a usable answer."""
        self._failures.pop(hook, None)

    def fault(self) -> Fault | None:
        """Return the fault while hooks fail again and again."""
        since = self._clock.now() - FORGOTTEN
        names = [
            hook
            for hook, (count, last) in self._failures.items()
            if count >= FAILURES and last > since
        ]
        if not names:
            return None
        return Fault(
            f"without a usable answer {FAILURES} times in a row or more: "
            + ", ".join(sorted(names)),
            failing=False,
        )

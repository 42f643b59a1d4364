"""Whether a store can write, and the attempts to find out when it could not."""

from __future__ import annotations

import random
from collections.abc import Callable

import structlog

from _speedups import backoff
from service.core.ports import Clock, Timer
from service.stores.sqlite.schema import reason
from service.stores.sqlite.writer import Job

__all__ = ["WriteHealth"]

# While commits fail, one is tried now and then even if nobody publishes, so that a
# server taken out of service by its fault comes back: after 0.5 s, then twice as long
# each time, and no longer than this.
PROBE_CAP = 4.0  # s

_log = structlog.get_logger(__name__)


class WriteHealth:
    """The state of the writer. Event loop only.

    Args:
        clock: Calls the next attempt.
        chance: Spreads the attempts.
        submit: Queues work on the writer's thread.
        probe: Writes something there.

    Attributes:
        fault: Why the last commit failed, None if it did not.
    """

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        submit: Callable[[Job[None]], None],
        probe: Callable[[], None],
    ) -> None:
        self.fault: str | None = None
        self._clock = clock
        self._rng = rng
        self._submit = submit
        self._probe = probe
        self._probes = 0
        self._timer: Timer | None = None
        self._stopped = False

    def failed(self, error: BaseException) -> None:
        """Remember that writing does not work, and try again soon."""
        if self._stopped:
            return
        if self.fault is None:
            _log.error("the store cannot write", reason=reason(error))
        self.fault = f"the store cannot write: {reason(error)}"
        if self._timer is None:
            delay = backoff(self._probes, self._rng.random(), cap=PROBE_CAP)
            self._probes += 1
            self._timer = self._clock.call_at(self._clock.now() + delay, self._try)

    def recovered(self) -> None:
        """Remember that writing works."""
        self.fault = None
        self._probes = 0

    def stop(self) -> None:
        """Make no further attempt."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _try(self) -> None:
        self._timer = None
        if self.fault is not None and not self._stopped:
            self._submit(Job(self._probe, self._tried))

    def _tried(self, _: None, error: BaseException | None) -> None:
        if error is None:
            self.recovered()
        else:
            self.failed(error)

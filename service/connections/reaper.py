"""The reaper: looks at every connection twice a minute, as a backstop for all timers.

What timers and callbacks do at once is done here late, should a bug or a full disk have
kept them from it: a connection that gave and took nothing for `idle_ttl` is closed, and
one that was closed and is still there is aborted. The slots are counted anew, and a
registry that counts wrong is logged. None of this should ever be needed.

Invariants:

* A round begins every period, give or take a tenth at random, from `start` to `stop`,
  whatever happened in the one before; rounds do not overlap.
* One record that cannot be looked at is logged and counted, and the next is looked at.
* At most `PORTION` records are looked at in one turn of the loop, each once a round and
  at constant cost; the recount at the end of a round is one step (`Registry.recount`).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import structlog

from service.connections.registry import Record, Registry
from service.core.errors import NO_PONG, describe
from service.core.health import Fault
from service.core.ports import Clock, Timer

__all__ = ["Reaper"]

log = structlog.get_logger("steadwire")

PORTION = 500
"""Records of one turn of the loop (count)."""

JITTER = 0.1
"""Part of the period by which a round may come earlier or later."""


class Reaper:
    """The reaper of one registry; its timer is its only cost between rounds.

    Args:
        registry: The connections.
        clock: Times the rounds, and how long a connection was idle.
        rng: Spreads the rounds of several processes.
        period: Seconds between rounds.
        idle_ttl: Seconds without a frame, a pong or a successful write until a
            connection is closed.

    Attributes:
        last_sweep_at: When the last round ended, as `Clock.wall`; None before that.
        rounds: Rounds that ended.
        idle: Connections closed for being idle.
        aborted: Connections aborted that were closed and still there.
        miscounted: Slots that the registry had counted wrong, over all rounds.
        failures: Records, and recounts, that raised.
    """

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        rng: Random,
        *,
        period: float,
        idle_ttl: float,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._period = period
        self._idle_ttl = idle_ttl
        self._timer: Timer | None = None
        self._left: list[Record] = []
        self._finished_at = 0.0
        self.last_sweep_at: float | None = None
        self.rounds = 0
        self.idle = 0
        self.aborted = 0
        self.miscounted = 0
        self.failures = 0

    def start(self) -> None:
        """Begin; the first round is a period away."""
        self._finished_at = self._clock.now()
        self._wind()

    def stop(self) -> None:
        """Begin no more rounds."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def fault(self) -> Fault | None:
        """Return that a round is more than two periods late, if it is."""
        late = self._clock.now() - self._finished_at
        if late <= 2 * self._period:
            return None
        return Fault(f"the last sweep was {late:.0f} s ago", failing=False)

    def _wind(self) -> None:
        spread = 1.0 + JITTER * (2.0 * self._rng.random() - 1.0)
        self._timer = self._clock.call_at(
            self._clock.now() + spread * self._period, self._begin
        )

    def _begin(self) -> None:
        self._left = self._registry.records()
        self._go_on()

    def _go_on(self) -> None:
        now = self._clock.now()
        portion, self._left = self._left[-PORTION:], self._left[:-PORTION]
        for record in portion:
            self._try(lambda record=record: self._look(record, now))  # type: ignore[misc]
        if self._left:
            self._timer = self._clock.call_at(now, self._go_on)
        else:
            self._finish()

    def _finish(self) -> None:
        self._try(self._recount)
        self.rounds += 1
        self._finished_at = self._clock.now()
        self.last_sweep_at = self._clock.wall()
        self._wind()

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            self.failures += 1
            log.error("a part of the sweep failed", **describe(error))

    def _look(self, record: Record, now: float) -> None:
        if now - record.active < self._idle_ttl:
            return
        if record.over:
            self.aborted += 1
            record.connection.abort()
        else:
            self.idle += 1
            record.connection.disconnect(NO_PONG)

    def _recount(self) -> None:
        wrong = self._registry.recount()
        if wrong:
            self.miscounted += wrong
            log.warning("the registry counts wrong", connections=wrong)

"""Loop monitor: measures the event loop's lag, and calls the watchdogs of overload.

A late loop delays every connection. The cause is a blocking call, or more work than one
core does; the lag shows both first. A loop that was blocked for some time is seen to be
late by that time less `PERIOD`, or more.
"""

from __future__ import annotations

from random import Random

import structlog

from service.connections.overload import Overload
from service.connections.registry import Registry
from service.core.ports import Clock, Timer
from service.metrics import Metrics

__all__ = ["LoopMonitor"]

log = structlog.get_logger("steadwire")

PERIOD = 0.25  # s
SAMPLING = 4  # periods between two looks at the sockets' queues (count)
LATE = 0.25  # s; a larger lag is logged, once until it was smaller for `CALM`
CALM = 60.0  # s; also how long the largest lag is shown
SAMPLE = 100  # connections whose queues are measured, at random (count)


class LoopMonitor:
    """Measures the event loop of one process; its timer is its only cost.

    Args:
        registry: The connections whose queues are sampled.
        metrics: Counts.
        clock: Times the measurements.
        rng: Picks the sample.
        overload: Is told of each lag.

    Attributes:
        worst: The largest lag of the last one to two minutes, in seconds.
    """

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        clock: Clock,
        rng: Random,
        overload: Overload,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._overload = overload
        self._timer: Timer | None = None
        self._due = 0.0
        self._until_sample = SAMPLING
        self._current = 0.0  # the largest of this minute
        self._previous = 0.0  # the largest of the minute before
        self._minute_ends = 0.0
        self._late_at = float("-inf")

    @property
    def worst(self) -> float:
        """The largest lag of the last one to two minutes, in seconds."""
        return max(self._current, self._previous)

    def start(self) -> None:
        """Begin to measure."""
        self._minute_ends = self._clock.now() + CALM
        self._wind()

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wind(self) -> None:
        self._due = self._clock.now() + PERIOD
        self._timer = self._clock.call_at(self._due, self._measure)

    def _measure(self) -> None:
        now = self._clock.now()
        lag = max(0.0, now - self._due)
        self._observe(now, lag)
        self._overload.measure(now, lag)
        self._until_sample -= 1
        if not self._until_sample:
            self._until_sample = SAMPLING
            self._sample()
        self._wind()

    def _observe(self, now: float, lag: float) -> None:
        self._metrics.lag.observe(lag)
        if now >= self._minute_ends:
            self._minute_ends = now + CALM
            self._previous, self._current = self._current, 0.0
        self._current = max(self._current, lag)
        if lag > LATE:
            if now - self._late_at > CALM:
                log.warning("the event loop is late", seconds=round(lag, 3))
            self._late_at = now

    def _sample(self) -> None:
        connections = list(self._registry)
        if len(connections) > SAMPLE:
            connections = self._rng.sample(connections, SAMPLE)
        for connection in connections:
            self._metrics.queue.observe(connection.queued_bytes)

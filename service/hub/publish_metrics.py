"""Publish metrics: counts publications, and times one in 64 from append to sockets."""

from __future__ import annotations

from typing import Protocol

from service.core.errors import StoreError
from service.core.model import Appended
from service.core.ports import AppendDone, Clock
from service.metrics import Metrics

__all__ = ["PublishMetrics"]

EVERY = 64
"""One publication of so many is timed (count): timing costs some 1 µs each."""


class _Flushes(Protocol):
    """The `Flusher`: writes to the sockets at the end of the loop's turn, in order."""

    def add(self, waiting: _Sample) -> None:
        """Call ``waiting.flush()`` after all that was added before."""


class PublishMetrics:
    """Counts for one hub.

    Args:
        metrics: The counters and histograms.
        clock: Times publications.
        flushes: Calls back when the pushes of a commit have been written.
    """

    def __init__(self, metrics: Metrics, clock: Clock, flushes: _Flushes) -> None:
        self._metrics = metrics
        self._clock = clock
        self._flushes = flushes
        self._left = 1  # publications until one is timed

    def publishing(self, done: AppendDone) -> AppendDone:
        """Return *done*, wrapped if this publication is one that is timed."""
        self._left -= 1
        if self._left:
            return done
        self._left = EVERY
        clock, started = self._clock, self._clock.now()

        def timed(outcome: Appended | StoreError) -> None:
            done(outcome)
            if not isinstance(outcome, StoreError):
                self._flushes.add(_Sample(self._metrics, clock, started))

        return timed

    def committed(self, count: int) -> None:
        """Count a commit of *count* publications."""
        self._metrics.publications.add(count)
        self._metrics.batch.observe(count)


class _Sample:
    """A timed publication: it is flushed after the pushes that it caused."""

    __slots__ = ("_clock", "_metrics", "_started")

    def __init__(self, metrics: Metrics, clock: Clock, started: float) -> None:
        self._metrics = metrics
        self._clock = clock
        self._started = started

    def flush(self) -> None:
        self._metrics.latency.observe(self._clock.now() - self._started)

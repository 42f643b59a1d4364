"""Levels of liveness, and statistics of pings and levels of one process.

                missed pong          80 %           100 % of the timeout without a sign
    healthy ──────────────► degraded ────► suspect ────► dead: close 3012
       ▲                       │              │
       └───────────────────────┴──────────────┘ any sign of life: resurrected

`keepalive` has the timers of one connection: it pings, decides the level, and reports
each step here once. Nothing is decided here. Dead connections are remembered for twice
the timeout, so that one can look up why a connection has ended; they are never
resurrected.

Every ping has one of three fates: ``sent == answered + orphaned + pending``.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Callable

from service.core.model import ClientId

__all__ = ["LivenessStats", "Level"]

REMEMBERED = 500
"""Dead connections remembered (count); with one more, the oldest is forgotten."""


class Level(enum.Enum):
    """A level of liveness: the certainty that a connection is alive."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    SUSPECT = "suspect"
    DEAD = "dead"


Listener = Callable[[ClientId, Level, Level], None]
"""Called with a connection and its level before and after; must not raise."""


class LivenessStats:
    """Statistics of the liveness of a process's connections.

    Args:
        timeout: Seconds without a sign of life until a connection is dead.

    Attributes:
        listeners: Called with each step.
        rtt_listeners: Called with each round trip time that was accepted, in seconds.
        steps: The count of each step, by the two levels.
        sent: Pings written.
        answered: Pings whose pong came.
        orphaned: Pings whose pong did not come within twice the timeout, or before the
            connection ended.
        late: Pongs of orphaned pings, ignored.
        rejected_samples: Round trips over 30 s, which say nothing about the link.
        clock_skew_corrections: Round trips that no monotonic clock can give.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.listeners: list[Listener] = []
        self.rtt_listeners: list[Callable[[float], object]] = []
        self.steps: Counter[tuple[Level, Level]] = Counter()
        self.sent = 0
        self.answered = 0
        self.orphaned = 0
        self.late = 0
        self.rejected_samples = 0
        self.clock_skew_corrections = 0
        self._dead: OrderedDict[ClientId, float] = OrderedDict()

    def step(self, client: ClientId, before: Level, after: Level) -> None:
        """Note that a connection is at another level."""
        self.steps[before, after] += 1
        for listener in self.listeners:
            listener(client, before, after)

    def record_death(self, client: ClientId, heard: float) -> None:
        """Remember a dead connection, last heard of at *heard*."""
        self._dead[client] = heard
        if len(self._dead) > REMEMBERED:
            self._dead.popitem(last=False)

    def dead(self, now: float) -> dict[ClientId, float]:
        """Return the recently dead with their last sign of life; forget older ones."""
        oldest = now - 2 * self.timeout
        while self._dead:
            client, heard = next(iter(self._dead.items()))
            if heard > oldest:
                break
            del self._dead[client]
        return dict(self._dead)

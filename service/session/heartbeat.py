"""What all connections' heartbeats have in common: the timeout, and what they count.

                missed pong          80 %           100 % of the timeout without a sign
    healthy ──────────────► degraded ────► suspect ────► dead: close 3012
       ▲                       │              │
       └───────────────────────┴──────────────┘ any sign of life: resurrected

A connection's own clocks are in `session.liveness`; it moves between the levels by
itself, each step once, and tells here. What died is remembered for twice the timeout,
for those who look at what became of a connection; it is never resurrected.

Every ping ends as one of three: ``sent == answered + orphaned + those that wait``.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Callable

from service.core.model import ClientId

__all__ = ["Heartbeat", "Level"]

REMEMBERED = 500
"""The dead that are remembered (count); one more makes the oldest forgotten."""


class Level(enum.Enum):
    """How sure we are that a connection is alive."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    SUSPECT = "suspect"
    DEAD = "dead"


Listener = Callable[[ClientId, Level, Level], None]
"""Told of each step from one level to another, on the event loop; must not raise."""


class Heartbeat:
    """The heartbeats of one process.

    Args:
        timeout: Seconds without a sign of life until a connection is dead.

    Attributes:
        listeners: Told of each step.
        timers: Told of each round trip that says something about its link, in seconds.
        steps: How often each step was taken, by the two levels.
        resurrections: Steps back to healthy.
        sent: Pings written.
        answered: Pings whose pong came.
        orphaned: Pings whose pong did not come within twice the timeout, or before the
            connection ended.
        late: Pongs of orphaned pings, ignored.
        rejected_samples: Round trips over 30 s, which say nothing about the link.
        clock_skew_corrections: Round trips that no monotonic clock can give.
        rapid: Signs of life less than 0.1 s after the one before.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.listeners: list[Listener] = []
        self.timers: list[Callable[[float], object]] = []
        self.steps: Counter[tuple[Level, Level]] = Counter()
        self.resurrections = 0
        self.sent = 0
        self.answered = 0
        self.orphaned = 0
        self.late = 0
        self.rejected_samples = 0
        self.clock_skew_corrections = 0
        self.rapid = 0
        self._dead: OrderedDict[ClientId, float] = OrderedDict()

    def step(self, client: ClientId, before: Level, after: Level) -> None:
        """Take note that a connection is at another level."""
        self.steps[before, after] += 1
        if after is Level.HEALTHY:
            self.resurrections += 1
        for listener in self.listeners:
            listener(client, before, after)

    def bury(self, client: ClientId, heard: float) -> None:
        """Remember the dead, last heard of at *heard*."""
        self._dead[client] = heard
        if len(self._dead) > REMEMBERED:
            self._dead.popitem(last=False)

    def dead(self, now: float) -> dict[ClientId, float]:
        """Return who died lately, and when it was last heard of; forget the rest."""
        oldest = now - 2 * self.timeout
        while self._dead:
            client, heard = next(iter(self._dead.items()))
            if heard > oldest:
                break
            del self._dead[client]
        return dict(self._dead)

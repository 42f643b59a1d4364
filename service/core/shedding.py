"""Load shedding: at which level a process serves less, in order to go on serving.

    level 1   new connections are refused, for a time
    level 2   and joins and leaves are held back; `ESCALATION` seconds later, if the
              pressure is still there, publications without an offset are not pushed
    level 3   and they are not from the first moment; histories, presence and lists are
              refused

What is subscribed is delivered at every level, if it has an offset, and all other
commands are answered: clients that are served cost little, and those that are sent away
come back and cost more.

Watchdogs (`service.connections.overload`) measure, and each finds a level. Invariants:

* The level is the highest that any watchdog has found in the last `calm` seconds. So it
  rises at once and falls when its cause has been away for so long, by as many levels as
  that allows; a load about a threshold does not make it go up and down.
* Pushes without an offset are shed in order of their `service.core.priority`: joins and
  leaves first. What is shed stays so until the level is below 2.
* Joins and leaves wait, and cancel each other out (`service.hub.announcements`), so
  that listeners know who is there when it is over. Publications are not made up for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from random import Random

__all__ = ["READS", "Shedding"]

CONNECTIONS = 1
"""From this level on new connections are refused."""

PUSHES = 2
"""From this level on pushes without an offset are shed."""

READS = 3
"""From this level on expensive reads are refused."""

ESCALATION = 1.0
"""Seconds at `PUSHES` after which publications without an offset are shed, too, if that
level is measured."""

_LONG_AGO = float("-inf")


class Shedding:
    """The shed level of one process, and what was shed.

    Args:
        calm: Seconds without a cause until the level falls.
        rng: Spreads the return of those that were refused.

    Attributes:
        level: The present level; 0 when all is served.
        causes: The level that each watchdog asks for, by its name.
        changes: Changes of the level, by the new one.
        publications: Publications without an offset that were pushed to nobody.
        reads: Reads that were refused.
    """

    def __init__(self, calm: float, rng: Random) -> None:
        self._calm = calm
        self._rng = rng
        self._found: dict[str, list[float]] = {}  # when each level was found last
        self._pushes_since = 0.0  # when joins and leaves began to be held back
        self._sheds_publications = False
        self.level = 0
        self.causes: dict[str, int] = {}
        self.changes: Counter[int] = Counter()
        self.publications = 0
        self.reads = 0

    def observe(self, now: float, found: Mapping[str, int]) -> bool:
        """Take the level that each watchdog finds now; return whether ours changed."""
        for cause, level in found.items():
            times = self._found.setdefault(cause, [_LONG_AGO] * READS)
            times[:level] = [now] * level
            self.causes[cause] = sum(now - at < self._calm for at in times)
        before, self.level = self.level, max(self.causes.values(), default=0)
        if before < PUSHES:
            self._pushes_since = now
        if self.level < PUSHES:
            self._sheds_publications = False
        elif self.level >= READS:
            self._sheds_publications = True
        elif max(found.values(), default=0) >= PUSHES:
            self._sheds_publications |= now - self._pushes_since >= ESCALATION
        if self.level == before:
            return False
        self.changes[self.level] += 1
        return True

    @property
    def refuses_connections(self) -> bool:
        """True while new connections are refused."""
        return self.level >= CONNECTIONS

    @property
    def retry_after(self) -> float:
        """Seconds after which a refused client should come back, each another time."""
        return self._calm * (1.0 + self._rng.random())

    @property
    def holds_joins_and_leaves(self) -> bool:
        """True while joins and leaves are not pushed."""
        return self.level >= PUSHES

    def sheds_publication(self) -> bool:
        """Tell whether one without an offset is not to be pushed, and count it."""
        if not self._sheds_publications:
            return False
        self.publications += 1
        return True

    def refuses_read(self) -> bool:
        """Tell whether a read that may be expensive is refused, and count it."""
        if self.level < READS:
            return False
        self.reads += 1
        return True

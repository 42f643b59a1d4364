"""Health checks: faults of the service's parts, by name.

A part that can fail adds a check. *Degraded* means that clients are served, but an
operator should look; *failing* means that traffic should go to another server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Checks", "Fault"]


class Fault(NamedTuple):
    """A fault that a check found.

    Attributes:
        reason: The fault in a few words, without names or secrets.
        failing: True when the service cannot do its work because of it.
    """

    reason: str
    failing: bool


class Checks:
    """The checks of one service, by name."""

    def __init__(self) -> None:
        self._checks: dict[str, Callable[[], Fault | None]] = {}

    def add(self, name: str, check: Callable[[], Fault | None]) -> None:
        """Add a check.

        Args:
            name: One word; a check that has this name already is replaced.
            check: Called on the event loop at each look; returns at once, None when
                all is well.
        """
        self._checks[name] = check

    def faults(self) -> dict[str, Fault]:
        """Return the present faults by the name of their check."""
        found = {name: check() for name, check in self._checks.items()}
        return {name: fault for name, fault in found.items() if fault is not None}

    def levels(self) -> dict[str, float]:
        """Return 0 for each check where all is well, 1 if degraded, 2 if failing."""
        faults = self.faults()
        return {
            name: float(1 + faults[name].failing) if name in faults else 0.0
            for name in self._checks
        }

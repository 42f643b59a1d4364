"""What is wrong with the service at the moment, as its parts say when asked.

A part that can fail adds a check. *Degraded* means that clients are served, and that
somebody should look; *failing* means that traffic should go elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Checks", "Fault"]


class Fault(NamedTuple):
    """What a check found.

    Attributes:
        reason: What is wrong, in a few words without names or secrets.
        failing: Whether the service cannot do its work because of it.
    """

    reason: str
    failing: bool


class Checks:
    """The checks of one service, by name."""

    def __init__(self) -> None:
        self._checks: dict[str, Callable[[], Fault | None]] = {}

    def add(self, name: str, check: Callable[[], Fault | None]) -> None:
        """Ask *check* at each look; it returns at once, and None when all is well.

        Args:
            name: One word; of a check that is there already, it takes the place.
            check: Asked on the event loop.
        """
        self._checks[name] = check

    def faults(self) -> dict[str, Fault]:
        """Return what is wrong, by the name of the check."""
        found = {name: check() for name, check in self._checks.items()}
        return {name: fault for name, fault in found.items() if fault is not None}

    def levels(self) -> dict[str, float]:
        """Return for each check 0 if all is well, 1 if degraded and 2 if failing."""
        faults = self.faults()
        return {
            name: float(1 + faults[name].failing) if name in faults else 0.0
            for name in self._checks
        }

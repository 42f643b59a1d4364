"""Bound on the memory of appends that a store has accepted and not yet reported."""

from __future__ import annotations

from sys import getsizeof

from service.core.errors import StoreBusy
from service.core.model import Draft

__all__ = ["AppendBudget"]

OVERHEAD = 400  # bytes of a waiting append beside its payload


class AppendBudget:
    """Counts the bytes of waiting appends.

    Args:
        limit: Bytes. When nothing waits any append is accepted, or a payload above the
            limit never could be.
    """

    __slots__ = ("_limit", "_waiting")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting = 0

    @property
    def used(self) -> float:
        """The part of the limit that waits; above 1 for one append that is larger."""
        return self._waiting / self._limit

    def accept(self, draft: Draft) -> int | None:
        """Return the bytes to `release` when *draft* was reported; None: full."""
        cost = OVERHEAD + getsizeof(draft.data)
        if draft.info is not None:
            cost += getsizeof(draft.info)
        if draft.tags is not None:
            cost += getsizeof(draft.tags)
        waiting = self._waiting + cost
        if waiting > self._limit and self._waiting:
            return None
        self._waiting = waiting
        return cost

    def release(self, cost: int) -> None:
        """Give back what `accept` returned."""
        self._waiting -= cost

    def full(self) -> StoreBusy:
        """Return the error for an append that was not accepted."""
        return StoreBusy(
            f"{self._waiting} bytes wait for the store, no more than {self._limit} may"
        )

"""Whom a newcomer sends away, or who sends it away."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from service.stores.dynamodb.registry.records import Record

__all__ = ["Limits", "OverLimit", "choose"]

REMOVED = 20
"""Taken out by one admission at the most (count): a transaction has its bound. There
are more only when a limit was lowered; the next admissions take them."""


class OverLimit(Exception):
    """A user or an address has all the connections that it may have."""


class Limits(NamedTuple):
    """What there may be.

    Attributes:
        user: Connections of one user.
        address: Connections of one address without a user.
        policy: ``evict_lru`` takes out the least recently active; ``reject`` refuses
            the newcomer.
        age: Seconds after which a connection does not count any more.
    """

    user: int
    address: int
    policy: Literal["evict_lru", "reject"]
    age: float


def choose(
    book: str, kept: Sequence[Record], limits: Limits, lost: Callable[[str], bool]
) -> list[Record]:
    """Return who goes, so that one more is within the limit.

    Those of processes that are *lost* go first, whatever the policy: they are dead.

    Raises:
        OverLimit: Nobody does.
    """
    limit = limits.user if book.startswith("U#") else limits.address
    count = len(kept) + 1 - limit
    if count <= 0:
        return []

    def worth(one: Record) -> tuple[bool, int]:
        return not lost(one.node), one.active

    chosen = heapq.nsmallest(min(count, REMOVED), kept, key=worth)
    if limits.policy == "reject" and not all(lost(one.node) for one in chosen):
        raise OverLimit
    return chosen

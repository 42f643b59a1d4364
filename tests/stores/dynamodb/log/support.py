"""Faults of writes, and what is stored, for tests of the log."""

from __future__ import annotations

from tests.stores.dynamodb.mishaps import Death
from tests.stores.dynamodb.support import (
    StoreClock,
)


class SkewedClock(StoreClock):
    """Of a machine whose time is wrong."""

    skew = 0.0

    def wall(self):
        return super().wall() + self.skew


def writing(count, fault):
    """Return a fault of the next *count* transactions."""
    left = [count]

    def once(operation):
        if operation != "TransactWriteItems" or not left[0]:
            return None
        left[0] -= 1
        return fault(operation)

    return once


def die(operation):
    raise Death


async def stored(bench, channel="a"):
    """Return the data of a channel, whose offsets are dense."""
    bench.store.clock.ahead += 0.11  # what was read before is not believed any more
    page = await bench.read(channel, 0)
    assert [p.offset for p in page.publications] == list(range(1, page.top.offset + 1))
    return [p.data for p in page.publications]

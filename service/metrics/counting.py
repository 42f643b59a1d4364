"""Counters on the event loop: plain integers, read when somebody scrapes.

A counter of prometheus-client takes a lock and boxes a float, some 300 ns each time;
these take 20 to 70 ns, since nobody but the event loop touches them. A part that works
on a thread of its own reports to the loop, and is counted there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

__all__ = ["Count", "Family", "Gauge", "Histogram", "Label", "Tally", "Total"]

Label = str | int
OTHER = "other"


class Count:
    """How often something happened."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, count: int = 1) -> None:
        """Count it, *count* times."""
        self.value += count


class Tally:
    """How often something happened, by one label.

    Args:
        known: The label's values. Any other counts as "other", so that what somebody
            sends cannot make a series of its own.
    """

    __slots__ = ("values",)

    def __init__(self, known: Iterable[Label]) -> None:
        self.values: dict[Label, int] = dict.fromkeys((*known, OTHER), 0)

    def allow(self, label: Label) -> None:
        """Give the label one more value."""
        self.values.setdefault(label, 0)

    def add(self, label: Label, count: int = 1) -> None:
        """Count it under *label*, *count* times."""
        if label not in self.values:
            label = OTHER
        self.values[label] += count


class Histogram:
    """How large something was.

    Args:
        bounds: Upper bounds of the buckets, ascending; above the last is one more.

    Attributes:
        counts: In each bucket, not cumulated.
        sum: Of all that was observed.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Take one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Gauge:
    """What there is at the moment, read when somebody scrapes.

    Args:
        read: Returns it: one number, or one for each value of the label.
    """

    __slots__ = ("read",)

    def __init__(self, read: Callable[[], float | Mapping[str, float]]) -> None:
        self.read = read


class Total(Gauge):
    """How often something happened, read when somebody scrapes: it only grows."""

    __slots__ = ()


class Family:
    """One metric, by its name.

    Attributes:
        name: As it is exported, without the ``_total`` of a counter.
        help: What it is, in a sentence.
        label: The one label's name, "" for none.
        measure: Where its values are.
    """

    __slots__ = ("help", "label", "measure", "name")

    def __init__(
        self,
        name: str,
        help: str,
        measure: Count | Tally | Histogram | Gauge,
        label: str,
    ) -> None:
        self.name = name
        self.help = help
        self.measure = measure
        self.label = label

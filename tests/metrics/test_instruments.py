"""Metric instruments: counts, label values and buckets."""

from __future__ import annotations

from service.metrics.instruments import Counter, Histogram, LabelledCounter


def test_a_counter() -> None:
    counter = Counter()
    counter.add()
    counter.add(3)
    assert counter.value == 4


def test_an_unknown_label_counts_as_other() -> None:
    counter = LabelledCounter(("a", 100))
    counter.allow("b")
    for label in ("a", 100, "b", "from a client", 7):
        counter.add(label)
    assert counter.values == {"a": 1, 100: 1, "other": 2, "b": 1}


def test_a_value_on_a_bound_is_in_the_bucket_below() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == 14.0

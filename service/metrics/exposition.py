"""Exposition of the metrics: text for Prometheus, and figures for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from service.metrics.definitions import Metrics
from service.metrics.instruments import (
    CallbackCounter,
    Counter,
    Family,
    Gauge,
    Histogram,
    LabelledCounter,
)

__all__ = ["CONTENT_TYPE", "figures", "text"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class _Source(Collector):
    """The collector that prometheus-client calls at each scrape."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            yield _metric(family)


def text(metrics: Metrics) -> bytes:
    """Return all metrics, and those of the process, in the Prometheus text format."""
    # A new registry each time: two services in one process share nothing.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Source(metrics.families))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


def figures(metrics: Metrics) -> dict[str, object]:
    """Return all metrics by name: a number, numbers by label, or count and sum."""
    return {family.name: _figure(family) for family in metrics.families}


def _metric(family: Family) -> Metric:
    name, about, labels = family.name, family.help, [family.label]
    match family.measure:
        case Counter(value=value):
            return CounterMetricFamily(name, about, value)
        case LabelledCounter(values=values):
            counter = CounterMetricFamily(name, about, labels=labels)
            for label, value in values.items():
                counter.add_metric([str(label)], value)
            return counter
        case Histogram() as histogram:
            metric = HistogramMetricFamily(name, about)
            bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
            counts = accumulate(histogram.counts)
            buckets = list(zip(bounds, counts, strict=True))
            metric.add_metric([], buckets, histogram.sum)
            return metric
        case Gauge(read=read) as source:
            kind = (
                CounterMetricFamily
                if type(source) is CallbackCounter
                else GaugeMetricFamily
            )
            found = read()
            if not isinstance(found, Mapping):
                return kind(name, about, found)
            several = kind(name, about, labels=labels)
            for name, reading in found.items():
                several.add_metric([name], reading)
            return several


def _figure(family: Family) -> object:
    match family.measure:
        case Counter(value=value):
            return value
        case LabelledCounter(values=values):
            return {str(label): count for label, count in values.items()}
        case Histogram() as histogram:
            return {"count": sum(histogram.counts), "sum": histogram.sum}
        case Gauge(read=read):
            return read()

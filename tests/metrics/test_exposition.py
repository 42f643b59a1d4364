"""Exposition of metrics in the Prometheus text format, and as figures."""

from __future__ import annotations

from service.metrics import Metrics
from service.metrics.exposition import figures, text


def metrics() -> Metrics:
    made = Metrics()
    made.opened.add(2)
    made.connects.add("ok")
    made.rtt.observe(0.02)
    made.gauge("queued_bytes", "Bytes that wait.", lambda: 5)
    made.gauge("connections", "Open.", lambda: {"connected": 1.0}, "state")
    made.total("pings", "Pings.", lambda: {"sent": 3}, "outcome")
    return made


def test_text_has_each_kind_of_metric() -> None:
    lines = text(metrics()).decode().splitlines()
    for line in (
        "# TYPE steadwire_connections_opened_total counter",
        "steadwire_connections_opened_total 2.0",
        'steadwire_connects_total{outcome="ok"} 1.0',
        'steadwire_connects_total{outcome="other"} 0.0',
        'steadwire_ping_rtt_seconds_bucket{le="0.01"} 0.0',
        'steadwire_ping_rtt_seconds_bucket{le="0.025"} 1.0',
        'steadwire_ping_rtt_seconds_bucket{le="+Inf"} 1.0',
        "steadwire_ping_rtt_seconds_sum 0.02",
        "# TYPE steadwire_queued_bytes gauge",
        "steadwire_queued_bytes 5.0",
        'steadwire_connections{state="connected"} 1.0',
        "# TYPE steadwire_pings_total counter",
        'steadwire_pings_total{outcome="sent"} 3.0',
    ):
        assert line in lines, line


def test_figures_are_plain() -> None:
    found = figures(metrics())
    assert found["steadwire_connections_opened"] == 2
    assert found["steadwire_ping_rtt_seconds"] == {"count": 1, "sum": 0.02}
    assert found["steadwire_pings"] == {"sent": 3}
    assert found["steadwire_queued_bytes"] == 5

"""Refusals: each is counted, and the log has a bounded rate."""

from __future__ import annotations

from structlog.testing import capture_logs

from service.core.refusal_log import RefusalLog


def test_each_refusal_is_counted_and_one_in_ten_seconds_logged() -> None:
    refusals = RefusalLog()
    with capture_logs() as logs:
        for now in (0.0, 1.0, 9.9, 10.0, 11.0):
            refusals.add("origin", "192.0.2.1", now)
        refusals.add("connects", "192.0.2.2", 11.0)
        refusals.close()
        refusals.close()
    assert refusals.counts == {"origin": 5, "connects": 1}
    assert [(line["cause"], line.get("not_logged")) for line in logs] == [
        ("origin", None),
        ("origin", 2),
        ("connects", None),
        ("origin", 1),
    ]
    assert {line["event"] for line in logs} == {"refused"}

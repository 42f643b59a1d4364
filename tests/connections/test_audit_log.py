"""The audit log: what counts against an address, and a log that cannot be written."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from service.connections import audit_log
from service.connections.audit_log import log_decision
from service.connections.pending_connection import PendingConnection
from service.connections.refused_credentials import RefusedCredentials
from service.core.errors import (
    CONNECTION_EXPIRED,
    INTERNAL,
    INVALID_TOKEN,
    PERMISSION_DENIED,
    TOKEN_EXPIRED,
    UNAUTHORIZED,
)
from service.core.model import ClientId, UserId
from service.core.refusal_log import RefusalLog
from service.metrics import Metrics
from service.session.port import Decision
from service.settings import LimitSettings
from tests.clock import VirtualClock


def decide(about: str, code: int, reason: str = "") -> tuple[RefusalLog, Metrics]:
    refusals, metrics = RefusalLog(), Metrics()
    limits = LimitSettings(failures_per_address=1)
    refused = RefusedCredentials(limits, VirtualClock(), refusals)
    pending = PendingConnection("192.0.2.1", refused=refused)
    decision = Decision(about, UserId("ann"), code, reason)
    log_decision(decision, ClientId("me"), pending, metrics)
    return refusals, metrics


@pytest.mark.parametrize(
    ("about", "code", "outcome", "counts"),
    [
        ("connect", 0, "admitted", False),
        ("connect", UNAUTHORIZED.code, "refused", True),
        ("connect", PERMISSION_DENIED.code, "refused", True),
        ("subscribe", PERMISSION_DENIED.code, "refused", False),
        ("connect", INVALID_TOKEN.code, "refused", True),
        ("sub_refresh", INVALID_TOKEN.code, "refused", True),
        ("connect", TOKEN_EXPIRED.code, "expired", False),
        ("refresh", CONNECTION_EXPIRED.code, "expired", False),
        ("connect", INTERNAL.code, "unavailable", False),
    ],
)
def test_decisions(about: str, code: int, outcome: str, counts: bool) -> None:
    with capture_logs() as lines:
        refusals, metrics = decide(about, code, "why")
    assert refusals.counts == ({"failures": 1} if counts else {})
    assert {k for k, v in metrics.auth.values.items() if v} == {outcome}
    assert lines[-1:] == [
        {
            "event": "authentication",
            "log_level": "info",
            "about": about,
            "outcome": "refused" if code else "admitted",
            "code": code,
            "reason": "why",
            "client": "me",
            "user": "ann",
            "address": "192.0.2.1",
        }
    ]


def test_a_log_that_cannot_be_written_keeps_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("no space left on device")

    monkeypatch.setattr(
        audit_log, "log", structlog.wrap_logger(None, processors=[broken])
    )
    _, metrics = decide("connect", 0)
    assert metrics.auth.values["admitted"] == 1

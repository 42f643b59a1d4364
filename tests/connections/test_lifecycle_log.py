"""The lifecycle log: which reason of an end counts, and how a connect ended."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from service.connections.lifecycle_log import LifecycleLog
from service.core.errors import (
    FORCE_DISCONNECT,
    INTERNAL,
    INTERNAL_CLOSE,
    INVALID_TOKEN,
    PERMISSION_DENIED,
    SHUTDOWN,
    SLOW,
    WRITE_ERROR,
    Close,
    ErrorReply,
)
from service.core.model import ClientId, UserId
from service.metrics import Metrics


def opened() -> tuple[LifecycleLog, Metrics]:
    metrics = Metrics()
    return LifecycleLog(metrics, ClientId("me"), 10.0), metrics


def counted(values: dict[str | int, int]) -> dict[str | int, int]:
    return {label: count for label, count in values.items() if count}


def test_the_first_reason_of_the_server_counts_and_only_the_first_end() -> None:
    log, metrics = opened()
    log.connected(UserId("ann"), 10.5)
    log.closing(SLOW)
    log.closing(SHUTDOWN)
    with capture_logs() as lines:
        log.closed(1000, 12.0, sent=3, dropped=2, displaced=0)
        log.closed(1006, 13.0, sent=9, dropped=9, displaced=9)
    [line] = lines
    assert (line["by"], line["code"], line["reason"]) == ("server", 3008, SLOW.reason)
    assert (line["seconds"], line["messages"], line["dropped"]) == (2.0, 3, 2)
    assert counted(metrics.closes.values) == {3008: 1}
    assert counted(metrics.drops.values) == {"slow": 2}
    assert metrics.sent.value == 3


@pytest.mark.parametrize(
    ("code", "by", "label"),
    [
        (1000, "client", "client"),
        (4000, "client", "client"),
        (None, "client", "client"),
        (1002, "protocol", 1002),
        (1009, "protocol", 1009),
    ],
)
def test_who_ended_it(code: int | None, by: str, label: str | int) -> None:
    log, metrics = opened()
    with capture_logs() as lines:
        log.closed(code, 10.0, sent=0, dropped=0, displaced=0)
    assert (lines[0]["by"], lines[0]["code"]) == (by, code)
    assert counted(metrics.closes.values) == {label: 1}


@pytest.mark.parametrize(
    ("close", "cause"),
    [(SLOW, "slow"), (WRITE_ERROR, "write_error"), (SHUTDOWN, "gone"), (None, "gone")],
)
def test_why_messages_were_dropped(close: Close | None, cause: str) -> None:
    log, metrics = opened()
    if close is not None:
        log.closing(close)
    log.closed(1006, 10.0, sent=0, dropped=1, displaced=0)
    assert counted(metrics.drops.values) == {cause: 1}


def test_what_was_dropped_while_it_went_on_has_no_cause_in_its_end() -> None:
    log, metrics = opened()
    with capture_logs() as lines:
        log.closed(1006, 10.0, sent=0, dropped=5, displaced=3)
    assert lines[0]["dropped"] == 5
    assert counted(metrics.drops.values) == {"gone": 2}
    assert metrics.displaced.value == 3


@pytest.mark.requirement("L25")
@pytest.mark.parametrize(
    ("error", "close", "outcome"),
    [
        (None, None, "abandoned"),
        (None, INVALID_TOKEN, "refused"),
        (None, FORCE_DISCONNECT, "refused"),
        (None, INTERNAL_CLOSE, "failed"),
        (PERMISSION_DENIED, None, "refused"),
        (INTERNAL, None, "failed"),
        (INTERNAL, INVALID_TOKEN, "failed"),  # the error was first
    ],
)
def test_how_a_connect_ended(
    error: ErrorReply | None, close: Close | None, outcome: str
) -> None:
    log, metrics = opened()
    if error is not None:
        log.refused(error)
    if close is not None:
        log.closing(close)
    log.closed(1006, 10.0, sent=0, dropped=0, displaced=0)
    assert counted(metrics.connects.values) == {outcome: 1}


def test_an_error_after_the_connect_does_not_change_how_it_ended() -> None:
    log, metrics = opened()
    log.connected(UserId(""), 10.0)
    log.refused(INTERNAL)
    log.closed(1000, 11.0, sent=0, dropped=0, displaced=0)
    assert counted(metrics.connects.values) == {"ok": 1}

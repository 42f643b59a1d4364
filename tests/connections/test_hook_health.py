"""Health of the hooks: degraded after failures in a row, and by itself well again."""

from __future__ import annotations

import pytest

from service.connections.hook_health import HookHealth
from service.metrics import Metrics
from tests.clock import VirtualClock


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def health(clock, metrics):
    return HookHealth(clock, metrics)


@pytest.mark.requirement("R46")
def test_three_failures_in_a_row_degrade_and_an_answer_ends_that(health, metrics):
    for _ in range(2):
        health.failed("rpc")
    assert health.fault() is None
    health.failed("rpc")
    health.failed("connect")
    assert health.fault() == (
        "without a usable answer 3 times in a row or more: rpc",
        False,
    )
    for _ in range(2):
        health.failed("connect")
    assert health.fault().reason.endswith(": connect, rpc")
    health.answered("rpc")
    assert health.fault().reason.endswith(": connect")
    health.answered("connect")
    assert health.fault() is None
    assert metrics.hook_failures.values["rpc"] == 3
    assert metrics.hook_failures.values["connect"] == 3


def test_an_answer_begins_the_row_anew(health):
    for _ in range(5):
        health.failed("rpc")
        health.failed("rpc")
        health.answered("rpc")
    assert health.fault() is None


def test_a_hook_that_nobody_calls_is_forgotten_after_a_minute(health, clock):
    for _ in range(3):
        health.failed("rpc")
    clock.advance(59.9)
    assert health.fault() is not None
    clock.advance(0.1)
    assert health.fault() is None
    health.failed("rpc")  # the first of another row
    health.failed("rpc")
    assert health.fault() is None
    health.failed("rpc")
    assert health.fault() is not None

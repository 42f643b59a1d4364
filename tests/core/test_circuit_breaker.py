"""The circuit breaker, in virtual time.  R15, R16"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from service.core.circuit_breaker import Breaker
from tests.clock import VirtualClock


class Surroundings:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.probes: list[float] = []
        self.cleanups: list[float] = []
        self.states: list[str] = []
        self.reasons: list[str] = []
        self.begin = self.clock.now()
        self.breaker = Breaker(
            self.clock,
            probe=lambda: self.probes.append(self.clock.now() - self.begin),
            cleanup=lambda: self.cleanups.append(self.clock.now() - self.begin),
            rng=random.Random(1),
            changed=self.changed,
        )

    def changed(self, state: str, reason: str) -> None:
        self.states.append(state)
        self.reasons.append(reason)

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.failed("gone")


@pytest.fixture
def around():
    return Surroundings()


@pytest.mark.requirement("R15")
def test_one_or_two_failures_change_nothing(around):
    around.fail(2)
    assert around.breaker.closed
    around.breaker.succeeded()
    around.fail(2)
    assert around.breaker.state == "closed"
    around.clock.advance(100.0)
    assert (around.probes, around.cleanups, around.states) == ([], [], [])


@pytest.mark.requirement("R15")
def test_three_failures_in_a_row_open_it(around):
    around.fail(3)
    assert around.breaker.state == "open"
    assert not around.breaker.closed
    assert around.breaker.reason == "gone"
    assert around.breaker.openings == 1


def test_one_probe_is_made_after_half_a_second(around):
    around.fail(3)
    around.clock.advance(0.499)
    assert around.probes == []
    around.clock.advance(0.102)
    (probe,) = around.probes
    assert 0.5 <= probe <= 0.6
    assert around.breaker.state == "half-open"
    assert not around.breaker.closed
    around.clock.advance(100.0)  # the probe is still under way
    assert len(around.probes) == 1


@pytest.mark.requirement("R16")
def test_a_probe_that_succeeds_closes_it_and_there_is_no_cleanup(around):
    around.fail(3)
    around.clock.advance(0.6)
    around.breaker.succeeded()
    assert around.breaker.closed and around.breaker.reason == ""
    around.clock.advance(100.0)
    assert around.cleanups == []
    assert around.states == ["open", "half-open", "closed"]
    assert around.clock.pending == []


@pytest.mark.requirement("B35")
def test_a_probe_that_fails_opens_it_again_for_twice_as_long(around):
    around.fail(3)
    gaps = [0.5, 1.0, 2.0, 4.0, 4.0]
    for gap in gaps:
        before = around.clock.now() - around.begin
        around.clock.advance(gap + 0.1)
        assert gap <= around.probes[-1] - before <= min(gap + 0.1, 4.0)
        around.fail()
    assert len(around.probes) == 5
    assert around.breaker.openings == 1


@pytest.mark.requirement("R16")
def test_the_cleanup_comes_once_a_second_after_the_opening(around):
    around.fail(3)
    around.clock.advance(0.6)
    around.fail()
    around.clock.advance(0.399)
    assert around.cleanups == []
    around.clock.advance(0.001)
    assert around.cleanups == [1.0]
    for _ in range(5):
        around.clock.advance(5.0)
        around.fail()
    assert around.cleanups == [1.0]


def test_it_starts_from_the_beginning_after_a_recovery(around):
    around.fail(3)
    around.clock.advance(0.6)
    around.fail()
    around.clock.advance(2.0)
    around.breaker.succeeded()
    around.fail(2)
    assert around.breaker.closed
    around.fail()
    opened = around.clock.now() - around.begin
    around.clock.advance(1.0)
    assert 0.5 <= around.probes[-1] - opened <= 0.6
    assert around.cleanups == [1.0, opened + 1.0]
    assert around.breaker.openings == 2


def test_a_late_success_of_an_older_call_closes_it(around):
    around.fail(3)
    around.breaker.succeeded()
    assert around.breaker.closed
    around.clock.advance(100.0)
    assert (around.probes, around.cleanups) == ([], [])


def test_late_failures_do_not_put_off_the_probe(around):
    around.fail(3)
    around.clock.advance(0.3)
    around.fail(5)
    around.clock.advance(0.3)
    assert len(around.probes) == 1


def test_nothing_is_called_after_the_end(around):
    around.fail(3)
    around.breaker.close()
    around.breaker.close()
    around.clock.advance(100.0)
    around.fail(5)
    around.clock.advance(100.0)
    assert (around.probes, around.cleanups) == ([], [])
    assert around.clock.pending == []


@pytest.mark.parametrize("error", [ValueError, SystemExit])
@pytest.mark.requirement("R15")
def test_a_probe_that_cannot_begin_counts_as_failed(around, error):
    probes = []

    def begin():
        probes.append(around.clock.now())
        raise error

    around.breaker = Breaker(
        around.clock,
        probe=begin,
        cleanup=lambda: None,
        rng=random.Random(1),
        changed=lambda state, reason: None,
    )
    around.fail(3)
    for count in (1, 2):
        with pytest.raises(error):
            around.clock.advance(4.1)
        assert (around.breaker.state, len(probes)) == ("open", count)
        assert around.breaker.reason == error.__name__


@pytest.mark.requirement("R15")
def test_listeners_hear_of_an_opening_and_of_the_recovery_alone(around):
    heard = []
    around.breaker.listeners.append(heard.append)
    around.fail(2)
    assert heard == []
    around.fail(3)
    around.clock.advance(0.6)
    around.fail()
    assert heard == [True]
    around.breaker.succeeded()
    around.breaker.succeeded()
    assert heard == [True, False]
    assert around.breaker.recoveries == 1
    around.fail(3)
    around.breaker.succeeded()
    assert heard == [True, False, True, False]
    assert around.breaker.recoveries == 2


def test_each_change_is_told_with_its_reason(around):
    assert around.breaker.reason == ""
    around.fail(3)
    around.clock.advance(0.6)
    around.breaker.failed("still gone")
    around.clock.advance(1.1)
    around.breaker.succeeded()
    told = list(zip(around.states, around.reasons, strict=True))
    assert told == [
        ("open", "gone"),
        ("half-open", "gone"),
        ("open", "still gone"),
        ("half-open", "still gone"),
        ("closed", ""),
    ]


def test_failures_while_it_is_open_change_nothing_but_the_reason(around):
    around.fail(3)
    timers = around.clock.pending
    for _ in range(5):
        around.breaker.failed("later")
    assert around.states == ["open"]
    assert around.breaker.openings == 1
    assert around.breaker.reason == "later"
    assert around.clock.pending == timers


@pytest.mark.parametrize("end", ["succeeded", "close"])
def test_the_end_of_an_outage_cancels_its_timers(around, end):
    around.fail(3)
    assert len(around.clock.pending) == 2
    getattr(around.breaker, end)()
    assert around.clock.pending == []


def test_it_may_be_closed_before_anything_failed_and_stays_closed(around):
    around.breaker.close()
    around.fail(5)
    assert (around.breaker.state, around.states) == ("closed", [])
    assert around.clock.pending == []


@pytest.mark.parametrize(("jitter", "first"), [(0.0, 0.5), (0.25, 0.525), (1.0, 0.6)])
def test_the_cool_down_is_spread_by_a_tenth_of_a_second(around, jitter, first):
    class Fixed(random.Random):
        def random(self) -> float:
            return jitter

    clock = VirtualClock(now=0.0)
    breaker = Breaker(
        clock,
        probe=list,
        cleanup=list,
        rng=Fixed(),
        changed=lambda state, reason: None,
    )
    for _ in range(3):
        breaker.failed("gone")
    assert clock.pending == [first, 1.0]


class DeafClock(VirtualClock):
    """Calls every timer when it is told to, cancelled or not: the worst race."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[Callable[[], object]] = []

    def call_at(self, when, callback):
        self.timers.append(callback)
        return super().call_at(when, callback)


@pytest.mark.parametrize("end", ["succeeded", "close"])
def test_timers_that_raced_with_the_end_do_nothing(end):
    clock, calls = DeafClock(), []
    breaker = Breaker(
        clock,
        probe=lambda: calls.append("probe"),
        cleanup=lambda: calls.append("cleanup"),
        rng=random.Random(1),
        changed=lambda state, reason: calls.append(state),
    )
    for _ in range(3):
        breaker.failed("gone")
    getattr(breaker, end)()
    calls.clear()
    for timer in clock.timers:
        timer()
    assert len(clock.timers) == 2
    assert calls == []


def test_a_process_that_stood_still_calls_when_the_probe_is_late(around):
    breaker, clock = around.breaker, around.clock
    around.fail(3)
    breaker.catch_up()  # it was not frozen for long
    assert breaker.state == "open"
    clock.jump(60.0)  # the timers have not run
    breaker.catch_up()
    assert breaker.closed
    assert around.cleanups == [0.0]  # its connections are as old
    around.fail()
    assert breaker.state == "open"  # one failure is enough
    assert breaker.openings == 2
    clock.jump(60.0)
    breaker.catch_up()
    breaker.succeeded()
    around.fail(2)
    assert breaker.closed
    assert around.probes == []


def test_a_process_that_stood_still_during_its_probe_calls_too(around):
    breaker, clock = around.breaker, around.clock
    around.fail(3)
    clock.advance(0.7)
    assert breaker.state == "half-open"
    breaker.catch_up()
    assert breaker.closed
    around.fail()  # the end of the probe
    assert breaker.state == "open"

"""The timers of all connections on one timer of the clock."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from service.connections.timer_wheel import (
    LONGEST,
    PORTION,
    DeadlineTimer,
    TimerWheel,
    wheel_for,
)
from service.session.keepalive import Due, Keepalive
from service.session.liveness_stats import LivenessStats
from service.settings import ClientSettings
from tests.clock import VirtualClock

START = 1000.0


class SteppedClock(VirtualClock):
    """A clock that can also be moved by a turn of the event loop at a time."""

    def turn(self, seconds: float = 0.0) -> None:
        """Call what is due *seconds* from now, and not what that asks for."""
        self._now += seconds
        due = sorted(each for each in self._timers if each[0] <= self._now)
        self._timers = [each for each in self._timers if each[0] > self._now]
        for _, _, timer in due:
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()


class Bench:
    def __init__(self, longest: float = LONGEST) -> None:
        self.clock = SteppedClock(START)
        self.wheel = TimerWheel(self.clock, longest)
        self.rung: list[tuple[str, float]] = []

    def timer(
        self, name: str, then: Callable[[], object] = lambda: None
    ) -> DeadlineTimer:
        def ring() -> None:
            self.rung.append((name, self.clock.now()))
            then()

        return DeadlineTimer(self.wheel, ring)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.rung]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_timer_rings_once_and_never_early(bench: Bench) -> None:
    rng = Random(19)  # of the waits
    due: dict[str, float] = {}
    for number in range(500):
        due[str(number)] = START + rng.choice([0.01, 0.3, 4.0, 25.0, 90_000.0]) * (
            0.5 + rng.random()
        )
        bench.timer(str(number)).by(due[str(number)])
    bench.clock.advance(200_000.0)
    assert sorted(bench.names) == sorted(due)
    for name, at in bench.rung:
        wait = due[name] - START
        assert 0.0 <= at - due[name] <= min(LONGEST, wait / 16)


def test_the_clock_has_one_timer_for_any_number(bench: Bench) -> None:
    timers = [bench.timer(str(number)) for number in range(1000)]
    for number, timer in enumerate(timers):
        timer.by(START + 12.5 + number / 80)
        assert len(bench.clock.pending) == 1
    while len(bench.rung) < 1000:
        assert len(bench.clock.pending) == 1
        bench.clock.advance(0.5)
    assert bench.clock.pending == []


def test_waits_of_one_length_ring_together(bench: Bench) -> None:
    for number in range(64):
        bench.timer(str(number)).by(START + 24.5 + number / 128)
    bench.clock.advance(30.0)
    assert {at for _, at in bench.rung} == {START + 25.0}


def test_an_earlier_time_comes_first(bench: Bench) -> None:
    bench.timer("late").by(START + 20.0)
    bench.timer("soon").by(START + 2.0)
    bench.timer("over").by(START - 1.0)
    bench.clock.advance(0.0)
    assert bench.names == ["over"]
    bench.clock.advance(3.0)
    assert bench.names == ["over", "soon"]
    bench.clock.advance(30.0)
    assert bench.names == ["over", "soon", "late"]


def test_a_timer_is_not_moved_later(bench: Bench) -> None:
    timer = bench.timer("one")
    timer.by(START + 1.0)
    timer.by(START + 9.0)
    timer.by(START + 0.5)
    bench.clock.advance(10.0)
    assert bench.rung == [("one", START + 0.5)]


def test_the_last_ring_is_in_the_place_of_others(bench: Bench) -> None:
    timer = bench.timer("first")
    timer.by(START + 1.0)
    timer.last(START + 2.0, lambda: bench.rung.append(("last", bench.clock.now())))
    bench.clock.advance(5.0)
    assert bench.rung == [("last", START + 2.0)]


def test_a_stopped_timer_leaves_nothing(bench: Bench) -> None:
    timer = bench.timer("one")
    for wait in range(1, 500):
        timer.stop()
        timer.by(START + wait)
    other = bench.timer("other")
    other.by(START + 3.0)
    timer.stop()
    timer.stop()
    other.stop()
    assert bench.clock.pending == []
    bench.clock.advance(1000.0)
    assert bench.rung == []


def test_a_timer_that_rings_stops_another_of_its_slot() -> None:
    bench = Bench(0.0)
    second = bench.timer("second")
    first = bench.timer("first", second.stop)
    third = bench.timer("third")
    for timer in (first, second, third):
        timer.by(START + 1.0)
    bench.clock.advance(1.0)
    assert bench.names == ["first", "third"]


def test_a_timer_stopped_and_asked_again_by_one_of_its_slot_rings_at_its_new_time() -> (
    None
):
    bench = Bench(0.0)
    second = bench.timer("second")

    def move() -> None:
        second.stop()
        second.by(START + 4.0)

    first = bench.timer("first", move)
    first.by(START + 1.0)
    second.by(START + 1.0)
    bench.clock.advance(1.0)
    assert bench.names == ["first"]
    bench.clock.advance(3.0)
    assert bench.rung[-1] == ("second", START + 4.0)


def test_what_is_asked_for_while_timers_ring_waits_for_another_turn() -> None:
    bench = Bench(0.0)
    again: list[DeadlineTimer] = []

    def ask() -> None:
        if len(bench.rung) < 3:
            again[0].by(bench.clock.now())  # over at once

    again.append(bench.timer("again", ask))
    again[0].by(START + 1.0)
    bench.clock.turn(1.0)
    for rung in (1, 2, 3):
        assert len(bench.rung) == rung
        bench.clock.turn()
    assert bench.clock.pending == []


def test_a_portion_rings_in_one_turn() -> None:
    bench = Bench(0.0)
    for number in range(2 * PORTION + 1):
        bench.timer(str(number)).by(START + 1.0)
    for rung in (PORTION, 2 * PORTION, 2 * PORTION + 1):
        bench.clock.turn(1.0)
        assert len(bench.rung) == rung
    assert bench.names == [str(number) for number in range(2 * PORTION + 1)]


def test_one_that_raises_does_not_keep_others_from_ringing() -> None:
    bench = Bench(0.0)

    def fail() -> None:
        raise RuntimeError("a bug")

    for name, then in (("a", lambda: None), ("b", fail), ("c", lambda: None)):
        bench.timer(name, then).by(START + 1.0)
    with pytest.raises(RuntimeError):
        bench.clock.advance(1.0)
    bench.clock.advance(1.0)
    assert bench.names == ["a", "b", "c"]
    assert bench.clock.pending == []


def test_timers_ring_in_order_after_the_clock_stood_still(bench: Bench) -> None:
    for number in range(300):
        bench.timer(f"{number:03}").by(START + 1.0 + number)
    bench.clock.stall(400.0)
    assert bench.names == [f"{number:03}" for number in range(300)]
    assert bench.clock.pending == []


def ends_of_a_silent_peer(settings: ClientSettings, rng: Random) -> list[float]:
    """Return the seconds after which its keepalive says that it is dead."""
    clock = VirtualClock(START + rng.random())
    keepalive = Keepalive(settings, LivenessStats(60.0), "client")
    started = clock.now()
    ends: list[float] = []

    def tick() -> None:
        if keepalive.tick(clock.now(), reading=True) is Due.NO_PONG:
            ends.append(clock.now() - started)
        else:
            timer.by(keepalive.next)

    timer = DeadlineTimer(wheel_for(clock, settings), tick)
    keepalive.start(started, rng)
    timer.by(keepalive.next)
    clock.advance(1000.0)
    return ends


@pytest.mark.parametrize("pong_timeout", [0.05, 0.5, 8.0])
def test_a_late_timer_does_not_excuse_a_silent_peer(pong_timeout: float) -> None:
    settings = ClientSettings(pong_timeout=pong_timeout)
    rng = Random(7)  # of the starts, and so of how late the timers are
    for _ in range(50):
        [seconds] = ends_of_a_silent_peer(settings, rng)
        assert 60.0 <= seconds <= 60.0 + LONGEST

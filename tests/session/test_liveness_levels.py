"""Healthy, degraded, suspect, dead: each step at its time, once, and seen. R26, R28"""

from __future__ import annotations

from random import Random

import pytest

from service.core.model import ClientId
from service.session.keepalive import Due, Keepalive
from service.session.liveness_stats import Level, LivenessStats
from service.settings import ClientSettings
from tests.session.bench import Bench

H, D, S, X = Level.HEALTHY, Level.DEGRADED, Level.SUSPECT, Level.DEAD

PROFILES = [60.0, 75.0, 90.0]  # development, production, staging


class Watched(Bench):
    """A bench that notes each step with its time, in seconds since the last pong."""

    def __init__(self, timeout: float = 60.0, **client: float) -> None:
        super().__init__(timeout=timeout, **client)
        self.steps: list[tuple[float, Level, Level]] = []
        self.liveness_stats.listeners.append(self._step)
        self.connect()
        self.pass_time(self.session.next_tick - self.now)
        self.frame("{}")
        self.heard = self.now
        self.calls.clear()

    @property
    def resurrections(self) -> int:
        steps = self.liveness_stats.steps.items()
        return sum(count for (_, after), count in steps if after is H)

    def _step(self, client: ClientId, before: Level, after: Level) -> None:
        assert client == "me"
        self.steps.append((round(self.now - self.heard, 6), before, after))


@pytest.mark.requirement("R26", "R28")
@pytest.mark.parametrize("timeout", PROFILES)
def test_a_silent_connection_takes_each_step_once(timeout: float) -> None:
    bench = Watched(timeout)
    bench.pass_time(timeout - 0.001)
    assert bench.closes == []
    assert bench.steps == [(33.0, H, D), (0.8 * timeout, D, S)]
    bench.pass_time(0.001)
    assert bench.closes == [3012]
    assert bench.steps[2:] == [(timeout, S, X)]
    bench.pass_time(1000)
    assert len(bench.steps) == 3
    assert bench.liveness_stats.steps == {(H, D): 1, (D, S): 1, (S, X): 1}


@pytest.mark.parametrize("timeout", PROFILES)
def test_who_pongs_at_the_last_moment_is_healthy_for_ever(timeout: float) -> None:
    bench = Watched(timeout)
    for _ in range(100):
        bench.pass_time(25.0)
        bench.pass_time(7.999)
        bench.frame("{}")
        bench.pass_time(25.0 - 7.999)
        bench.frame("{}")
    assert (bench.steps, bench.closes) == ([], [])


def test_a_missed_pong_is_probed_once_and_pings_go_on_as_planned() -> None:
    bench = Watched()
    bench.pass_time(32.999)
    assert len(bench.calls) == 1
    bench.pass_time(0.001)  # 33: the probe
    assert len(bench.calls) == 2
    bench.pass_time(16.999)
    assert len(bench.calls) == 2
    bench.pass_time(0.001)  # 50: as planned
    assert len(bench.calls) == 3


@pytest.mark.requirement("R30", "B84")
@pytest.mark.parametrize("when", [33.0, 47.999, 48.0, 59.999])
def test_any_sign_of_life_resurrects(when: float) -> None:
    for life in ("{}", '{"id":7,"unsubscribe":{"channel":"x"}}'):
        bench = Watched()
        bench.pass_time(when)
        before = bench.session.keepalive.level
        assert before is (D if when < 48 else S)
        bench.frame(life)
        assert bench.steps[-1] == (when, before, H)
        assert bench.resurrections == 1
        bench.heard = bench.now
        bench.pass_time(60 - 0.001)
        assert bench.closes == []
        bench.pass_time(0.001)
        assert bench.closes == [3012]


def test_resurrections_are_counted_exactly() -> None:
    bench = Watched()
    for _ in range(10):
        bench.pass_time(40)
        bench.frame('{"id":7,"unsubscribe":{"channel":"x"}}')
        bench.frame('{"id":8,"unsubscribe":{"channel":"x"}}')
    assert bench.resurrections == 10


@pytest.mark.requirement("R30")
def test_nobody_rises_from_the_dead() -> None:
    bench = Watched()
    bench.pass_time(60)
    bench.frame("{}")
    bench.session.tick(bench.now + 5)
    assert bench.session.keepalive.level is X
    assert bench.resurrections == 0
    assert bench.closes == [3012]


@pytest.mark.requirement("R34")
def test_the_dead_are_remembered_for_twice_the_timeout() -> None:
    bench = Watched()
    stats = bench.liveness_stats
    bench.pass_time(60)
    assert stats.dead(bench.heard + 1.99 * 60) == {"me": bench.heard}
    assert stats.dead(bench.heard + 2 * 60) == {}


@pytest.mark.requirement("R1")
def test_no_more_than_five_hundred_dead_are_remembered() -> None:
    stats = LivenessStats(60.0)
    for number in range(600):
        stats.record_death(ClientId(str(number)), 1000.0)
    assert list(stats.dead(1001.0)) == [str(number) for number in range(100, 600)]


def liveness(**settings: float) -> tuple[Keepalive, LivenessStats]:
    stats = LivenessStats(60.0)
    found = Keepalive(ClientSettings(**settings), stats, ClientId("me"))  # type: ignore[arg-type]
    found.start(0.0, Random(1))
    return found, stats


@pytest.mark.requirement("R31")
def test_a_ping_that_nobody_answers_is_given_up_after_twice_the_timeout() -> None:
    found, stats = liveness()
    now = 0.0
    while now < 300.0:
        now += 1.0
        found.hear(now)  # it talks, and never pongs
        found.tick(now, reading=True)
    assert found.level is H
    assert stats.sent == 12
    assert found.pending == 5  # of the last 120 s
    assert stats.orphaned == 7
    # Should they come after all, they are ignored: that is no protocol error.
    for _ in range(12):
        assert found.pong(now) is True
    assert found.pong(now) is False
    assert (stats.late, stats.answered, found.pending) == (7, 5, 0)


@pytest.mark.requirement("R31")
def test_every_ping_is_answered_orphaned_or_waits() -> None:
    for seed in range(50):
        random = Random(seed)
        found, stats = liveness()
        now = 0.0
        while now < 1000.0:
            now += random.uniform(0.0, 10.0)
            while (due := found.tick(now, reading=random.random() < 0.9)) is Due.PING:
                pass
            if due is not Due.NOTHING:
                break
            if random.random() < 0.3:
                found.hear(now)
                found.pong(now)
            known = stats.answered + stats.orphaned + found.pending
            assert stats.sent == known, f"seed {seed}"
        found.end()
        found.end()
        assert stats.sent == stats.answered + stats.orphaned, f"seed {seed}"


def test_pings_that_wait_are_bounded() -> None:
    found, stats = liveness()
    for _ in range(1000):
        found.pinged(1.0)
    assert found.pending == 64
    assert stats.orphaned == 936


@pytest.mark.requirement("R32", "B86")
def test_a_pong_later_than_30_s_measures_nothing_and_is_life_all_the_same() -> None:
    found, stats = liveness()  # R32
    found.pinged(0.0)
    found.hear(31.0)
    assert found.pong(31.0)
    assert stats.rejected_samples == 1
    assert found.rtt is not None and found.rtt.accepted == 0
    assert found.level is H


@pytest.mark.requirement("R33", "B86")
def test_a_clock_that_goes_back_is_counted_and_kills_nobody() -> None:
    found, stats = liveness()
    found.pinged(100.0)
    found.hear(99.0)
    assert found.pong(99.0)
    assert stats.clock_skew_corrections == 1
    assert found.rtt is not None and found.rtt.accepted == 0
    assert found.tick(99.0, reading=True) is not Due.NO_PONG


@pytest.mark.requirement("R9", "B10")
def test_the_maximum_age_is_an_orderly_end_and_not_everybody_s_at_once() -> None:
    ends = []
    for seed in range(200):
        found, _ = liveness(ping_interval=1e6)
        found.start(0.0, Random(seed))
        found.heard = 1e6
        ends.append(found.next)
        assert found.tick(found.next - 0.001, reading=True) is Due.NOTHING
        assert found.tick(found.next, reading=True) is Due.AGED
    day = 86400.0
    assert max(ends) <= day
    assert min(ends) >= 0.95 * day
    assert max(ends) - min(ends) > 0.04 * day


@pytest.mark.requirement("R9")
def test_an_old_connection_is_told_to_come_back() -> None:
    bench = Bench(max_age=100.0).connect()
    while not bench.closes and bench.now < 2000:
        bench.pass_time(1)
        if ("ping",) in bench.calls:
            bench.calls.clear()
            bench.frame("{}")
    assert bench.closes == [3011]
    assert 95.0 <= bench.now - 1000.0 <= 101.0


def test_nothing_is_due_before_the_start() -> None:
    found = Keepalive(ClientSettings(), LivenessStats(60.0), ClientId("me"))
    assert found.next == float("inf")
    assert found.tick(1e9, reading=True) is Due.NOTHING


def answered(at: float, **settings: float) -> tuple[Keepalive, LivenessStats]:
    """Return one whose first ping was sent and answered; the next is 25 s later."""
    found, stats = liveness(**settings)
    assert found.tick(at, reading=True) is Due.PING
    found.hear(at)
    assert found.pong(at)
    assert found.next == at + 25.0
    return found, stats


def test_a_process_that_stood_still_does_not_hold_it_against_the_peer() -> None:
    found, _ = answered(25.0)
    assert found.tick(50.0 + 8.0, reading=True) is Due.PING  # as late as a pong may be
    assert found.heard == 25.0
    found, _ = answered(25.0)
    assert found.tick(50.0 + 8.25, reading=True) is Due.PING
    assert found.heard == 50.25  # 8 s ago, since a pong may wait in the socket
    assert found.level is H
    found, _ = answered(25.0)
    assert found.tick(500.0, reading=False) is Due.PING
    assert found.heard == 500.0


def test_a_pong_has_its_whole_time_again_after_a_standstill() -> None:
    found, _ = liveness()
    assert found.tick(25.0, reading=True) is Due.PING
    assert found.next == 33.0
    assert found.tick(100.0, reading=True) is Due.PING  # the one of 50 s
    assert found.heard == 92.0
    assert found.next == 108.0
    assert found.tick(107.999, reading=True) is Due.NOTHING
    assert found.level is H
    assert found.tick(108.0, reading=True) is Due.PING
    assert found.level is D


def test_a_probe_is_a_ping_like_any_other() -> None:
    found, stats = liveness()
    assert found.tick(25.0, reading=True) is Due.PING
    assert found.tick(33.0, reading=True) is Due.PING  # it had no pong
    assert (found.level, stats.sent, found.pending) == (D, 2, 2)
    assert found.next == 50.0  # the next as planned: no pong is waited for


def test_a_further_ping_does_not_give_the_first_pong_more_time() -> None:
    found, _ = liveness()
    assert found.tick(25.0, reading=True) is Due.PING
    found.pinged(30.0)
    assert found.next == 33.0
    found.tick(33.0, reading=True)
    assert found.level is D


def test_a_ping_is_given_up_at_twice_the_timeout() -> None:
    found, stats = liveness()
    found.pinged(0.0)
    found.pinged(119.999)
    assert (found.pending, stats.orphaned) == (2, 0)
    found.pinged(120.0)
    assert (found.pending, stats.orphaned) == (2, 1)


def test_no_pong_is_waited_for_after_the_end() -> None:
    found, stats = liveness()
    for _ in range(66):
        found.pinged(1.0)
    found.end()
    assert (found.pending, stats.orphaned) == (0, 66)
    assert found.pong(2.0) is False


def test_the_round_trips_of_one_connection_are_judged_together() -> None:
    found, stats = liveness()
    observed: list[float] = []
    stats.rtt_listeners.append(observed.append)
    for took in (0.5, 31.0, 32.0, -1.0, -2.0, 0.25):
        found.pinged(100.0)
        assert found.pong(100.0 + took)
    assert found.rtt is not None
    assert (found.rtt.accepted, observed) == (2, [0.5, 0.25])
    assert (stats.rejected_samples, stats.clock_skew_corrections) == (2, 2)
    assert stats.answered == 6


def test_the_levels_have_the_names_of_the_metrics() -> None:
    levels = [level.value for level in Level]
    assert levels == ["healthy", "degraded", "suspect", "dead"]

"""Ping, pong, stale and expiry at their exact times."""

from __future__ import annotations

from random import Random

import pytest

from service.core.errors import StoreUnavailable
from service.core.hooks import ConnectResult, Handlers
from service.core.model import ClientId
from service.session.keepalive import Keepalive
from service.session.liveness_stats import Level, LivenessStats
from service.settings import ClientSettings
from tests.session.bench import WALL, Bench, hook


def first_ping(bench: Bench) -> float:
    """Return when the first ping is due, in seconds from now."""
    return bench.session.next_tick - bench.now


def at_first_ping() -> Bench:
    bench = Bench().connect()
    bench.pass_time(first_ping(bench))
    assert bench.calls == [("ping",)]
    return bench


def test_the_first_ping_is_somewhere_in_the_second_half_of_an_interval() -> None:
    times = []
    for seed in range(200):
        liveness = Keepalive(ClientSettings(), LivenessStats(60.0), ClientId("c"))
        liveness.start(100.0, Random(seed))
        times.append(liveness.next - 100.0)
    assert 12.5 <= min(times) < 13.5
    assert 24.0 < max(times) <= 25.0


def test_a_ping_is_due_at_its_time_and_not_before() -> None:
    bench = Bench().connect()
    due = bench.session.next_tick
    bench.session.tick(due - 0.001)
    assert bench.calls == []
    bench.session.tick(due)
    assert bench.calls == [("ping",)]
    assert bench.session.next_tick == due + 8.0  # the pong's


def test_pings_follow_each_25_seconds_whatever_else_is_received() -> None:
    bench = at_first_ping()
    for count in range(2, 6):
        bench.frame("{}")
        assert first_ping(bench) == 25.0
        bench.pass_time(10)
        assert bench.request(unsubscribe={"channel": "x"}) == {"unsubscribe": {}}
        bench.pass_time(14.999)
        assert len(bench.calls) == count - 1
        bench.pass_time(0.001)
        assert len(bench.calls) == count


@pytest.mark.parametrize("late", [0.0, 7.999])
def test_a_pong_in_time(late: float) -> None:
    bench = at_first_ping()
    bench.pass_time(late)
    bench.frame("{}")
    bench.pass_time(20.0 - late)
    assert bench.closes == []


@pytest.mark.requirement("R26", "R28")
def test_no_pong_in_time() -> None:
    bench = at_first_ping()
    bench.pass_time(7.999)
    assert bench.calls == [("ping",)]
    bench.pass_time(0.001)
    assert bench.calls == [("ping",), ("ping",)]
    assert bench.closes == []


@pytest.mark.requirement("B87")
def test_a_pong_without_a_ping_closes_with_3501() -> None:
    bench = Bench().connect()
    bench.frame("{}")
    assert bench.closes == [3501]


def test_a_second_pong_closes_with_3501() -> None:
    bench = at_first_ping()
    bench.frame("{}")
    assert bench.closes == []
    bench.frame("{}")
    assert bench.closes == [3501]


def test_a_pong_among_commands() -> None:
    bench = at_first_ping()
    bench.frame('{"id":5,"unsubscribe":{"channel":"x"}}\n{}\n')
    bench.pass_time(8)
    assert bench.closes == []
    assert bench.one()["id"] == 5


def test_a_pong_is_taken_while_commands_wait() -> None:
    bench = Bench(in_flight=1).connect()
    due = first_ping(bench)
    bench.send(*({"id": n, "history": {"channel": "ch"}} for n in (5, 6)))
    bench.pass_time(due)
    bench.frame("{}")
    assert bench.closes == []
    bench.read()
    bench.read()
    bench.pass_time(8)
    assert bench.closes == []


def test_a_pong_s_absence_is_not_held_against_a_client_we_do_not_read() -> None:
    bench = Bench(in_flight=1).connect()
    bench.send({"id": 5, "history": {"channel": "ch"}})
    assert bench.session.busy
    bench.pass_time(first_ping(bench))
    bench.pass_time(16)
    assert bench.closes == []
    bench.read()
    bench.pass_time(7.999)  # it has the whole time once more
    assert bench.session.keepalive.level is Level.HEALTHY
    bench.pass_time(0.001)
    assert bench.session.keepalive.level is Level.DEGRADED
    assert bench.closes == []


def test_the_pongs_of_every_ping_that_was_sent_while_we_did_not_read() -> None:
    # A slow recovery, or a hook that takes its time: we ping on schedule, the client
    # answers each, and all its pongs are read together. That is no misbehaviour.
    bench = Bench(in_flight=1).connect()
    bench.send({"id": 5, "history": {"channel": "ch"}})
    bench.pass_time(first_ping(bench))
    bench.pass_time(25.0)
    bench.pass_time(25.0)
    assert bench.calls == [("ping",)] * 3
    bench.read()
    for _ in range(3):
        bench.frame("{}")
        assert bench.closes == []
    bench.frame("{}")
    assert bench.closes == [3501]


def test_pings_begin_with_the_reply_that_announces_them() -> None:
    bench = Bench(handlers=Handlers(connect=hook))
    bench.send({"id": 1, "connect": {}})
    bench.pass_time(9)
    bench.answer(ConnectResult())
    assert 12.5 <= first_ping(bench) <= 25.0
    bench.pass_time(11)
    assert bench.closes == []  # not stale


def expire(bench: Bench, seconds: float) -> None:
    """Let the connection expire so many seconds from now."""
    unix = WALL + bench.now - 1000.0 + seconds
    bench.session.refresh(unix, None, bench.now)


def test_expiry_closes_with_3005_after_the_delay() -> None:
    bench = Bench(expired_close_delay=4.0).connect()
    expire(bench, 1)
    assert first_ping(bench) == 5.0
    bench.pass_time(4.999)
    assert bench.closes == []
    bench.pass_time(0.001)
    assert bench.closes == [3005]


def test_an_expiry_that_is_put_off_and_taken_back() -> None:
    bench = Bench(expired_close_delay=0.0).connect()
    expire(bench, 5)
    expire(bench, 9)
    bench.pass_time(8)
    assert bench.closes == []
    bench.session.refresh(0.0, None, bench.now)
    bench.pass_time(4)
    assert bench.closes == []
    assert first_ping(bench) > 0


def test_an_expiry_that_comes_before_the_reply_counts() -> None:
    bench = Bench(handlers=Handlers(connect=hook), expired_close_delay=2.0)
    bench.send({"id": 1, "connect": {}})
    bench.answer(ConnectResult(expire_at=WALL + 3, channels=("a",)))
    bench.pass_time(5)
    assert bench.closes == []  # it is not in yet
    bench.joined()
    bench.pass_time(0)
    assert bench.closes == [3005]


def test_an_expiry_in_the_past_counts_from_now() -> None:
    # Else a hook that says so would be asked again and again, without a pause.
    bench = Bench(expired_close_delay=2.0).connect()
    expire(bench, -5)
    bench.pass_time(1.999)
    assert bench.closes == []
    bench.pass_time(0.001)
    assert bench.closes == [3005]


def test_nothing_is_due_after_the_end() -> None:
    bench = at_first_ping()
    bench.session.ended()
    assert bench.session.next_tick == float("inf")
    expire(bench, 1)
    bench.session.tick(bench.now + 100)
    assert bench.closes == []
    assert bench.session.next_tick == float("inf")


def test_a_tick_that_is_much_too_late_finds_everything_due() -> None:
    # The process was stopped for an hour (SIGSTOP, a suspended laptop).
    # Pongs may wait before our door: nobody is dead for that.
    bench = Bench().connect()
    bench.now += 3600
    bench.session.tick(bench.now)
    assert bench.closes == []
    assert bench.calls == [("ping",)]
    assert bench.session.keepalive.level is Level.HEALTHY


def test_a_failed_read_does_not_stop_the_pings() -> None:
    bench = Bench().connect()
    bench.send({"id": 5, "history": {"channel": "ch"}})
    bench.read(StoreUnavailable("locked"))
    bench.pass_time(first_ping(bench))
    assert ("ping",) in bench.calls

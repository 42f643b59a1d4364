"""The reaper: its rounds are on time whatever fails, and what they find. R7"""

from __future__ import annotations

from random import Random
from typing import Any

from structlog.testing import capture_logs

from service.connections.reaper import Reaper
from service.connections.registry import Registry
from service.core.errors import Close
from tests.clock import VirtualClock
from tests.connections.limited_stack import LimitedStack


def swept(**options: Any) -> LimitedStack:
    stack = LimitedStack(**options)
    stack.reaper.start()
    return stack


def test_a_round_begins_every_thirty_seconds_give_or_take_a_tenth() -> None:
    stack = swept()
    sweep, clock = stack.reaper, stack.clock
    assert sweep.last_sweep_at is None
    times: list[float] = []
    ahead = clock.wall() - clock.now()
    while clock.now() < 4000.0:
        clock.advance(0.25)
        if sweep.rounds > len(times):
            assert sweep.last_sweep_at is not None
            times.append(sweep.last_sweep_at - ahead)
    gaps = [b - a for a, b in zip([1000.0, *times], times, strict=False)]
    assert 90 <= len(times) <= 111
    assert all(26.999 <= gap <= 33.001 for gap in gaps)
    assert max(gaps) - min(gaps) > 3.0
    sweep.stop()
    assert clock.pending == []


def test_who_neither_gives_nor_takes_is_closed_in_the_end() -> None:  # R1, R8
    # Without pings, as if their timer were broken: only the backstop is left.
    stack = swept(ping_interval=1e6, heartbeat_timeout=1e7)
    idle, active = stack.enter("ann"), stack.enter("bob")
    for _ in range(60):
        stack.clock.advance(3)
        stack.settle()
        active.say({"unsubscribe": {"channel": "x"}})
        stack.settle()
    assert idle.close_code is None
    for _ in range(12):
        stack.clock.advance(3)
        active.say({"unsubscribe": {"channel": "x"}})
        stack.settle()
    assert (idle.close_code, active.close_code) == (3012, None)
    assert stack.reaper.idle == 1
    stack.check()


def test_active_every_ten_seconds_is_there_after_half_an_hour() -> None:  # R1
    stack = swept()
    client = stack.enter("ann")
    for _ in range(180):
        stack.clock.advance(10)
        stack.settle()
        while client.pings:
            client.pong()
        client.say({"unsubscribe": {"channel": "x"}})
        stack.settle()
    assert stack.inside(client) == [True]
    assert stack.heartbeat.steps == {}


def test_quiet_but_ponging_is_never_stale() -> None:  # R8
    stack = swept()
    client = stack.enter("ann")
    for _ in range(1800):
        stack.clock.advance(1)
        stack.settle()
        while client.pings:
            client.pong()
    assert stack.inside(client) == [True]


def test_a_closed_connection_that_is_still_there_is_aborted() -> None:  # L27
    stack = swept(ping_interval=1e6, heartbeat_timeout=1e7)
    client = stack.enter("ann")
    client.connection.malformed()
    stack.clock.advance(30)
    client.aborted = False  # the first was in vain
    stack.clock.advance(200)
    assert client.aborted
    assert stack.reaper.aborted >= 1


def test_one_bad_record_does_not_end_it() -> None:
    stack = swept(ping_interval=1e6, heartbeat_timeout=1e7)
    clients = [stack.enter(f"user{number}") for number in range(5)]
    records = list(stack.registry.slots())
    records[2].active = None  # type: ignore[assignment]  # a fault, not what is tested
    stack.clock.advance(33)
    assert (stack.reaper.rounds, stack.reaper.failures) == (1, 1)
    assert stack.inside(*clients) == [True] * 5
    for record in (*records[:2], *records[3:]):
        record.active = stack.clock.now() - 1000.0
    stack.clock.advance(33)
    stack.settle()
    assert (stack.reaper.rounds, stack.reaper.failures) == (2, 2)
    assert [one.close_code for one in clients] == [3012, 3012, None, 3012, 3012]


def test_more_than_a_portion_takes_several_turns_and_sees_each_once() -> None:
    class Idle:
        closes = 0

        def disconnect(self, close: Close) -> None:
            self.closes += 1

    clock, registry = VirtualClock(), Registry()
    idle = [Idle() for _ in range(1201)]
    for each in idle:
        registry.open(each, "", clock.now() - 1000.0)  # type: ignore[arg-type]
    reaper = Reaper(registry, clock, Random(1), period=30.0, idle_ttl=180.0)
    reaper.start()
    clock.advance(33)
    assert (reaper.rounds, {each.closes for each in idle}) == (1, {1})
    reaper.stop()


def test_health_is_degraded_when_the_sweep_is_two_periods_late() -> None:
    stack = swept()
    sweep, clock = stack.reaper, stack.clock
    clock.advance(300)
    assert sweep.fault() is None
    sweep.stop()  # as if it hung
    clock.advance(60 - (clock.now() - (clock.now() // 1)))
    clock.advance(40)
    fault = sweep.fault()
    assert fault is not None and not fault.failing
    assert fault.reason.startswith("the last sweep was ")


def test_slots_that_are_counted_wrong_are_logged_and_counted() -> None:  # R7
    stack = swept()
    ann, _ = stack.enter("ann"), stack.enter("bob")
    stack.clock.advance(33)
    assert stack.reaper.miscounted == 0
    record = stack.registry.find(ann.connection.identity.client)
    assert record is not None
    record.has_slot = False  # as a bug might do
    with capture_logs() as logs:
        stack.clock.advance(33)
    assert stack.reaper.miscounted == 1
    [said] = [one for one in logs if one["log_level"] == "warning"]
    assert (said["event"], said["connections"]) == ("the registry counts wrong", 1)

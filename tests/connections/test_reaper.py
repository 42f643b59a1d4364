"""The sweep: on time, whatever fails, and what it finds. R7"""

from __future__ import annotations

from random import Random
from typing import Any

from structlog.testing import capture_logs

from service.connections.reaper import Reaper
from service.connections.registry import Registry
from service.core.errors import Close
from tests.clock import VirtualClock
from tests.connections.house import House


def swept(**options: Any) -> House:
    house = House(**options)
    house.reaper.start()
    return house


def test_a_round_begins_every_thirty_seconds_give_or_take_a_tenth() -> None:
    house = swept()
    sweep, clock = house.reaper, house.clock
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
    house = swept(ping_interval=1e6, heartbeat_timeout=1e7)
    idle, active = house.enter("ann"), house.enter("bob")
    for _ in range(60):
        house.clock.advance(3)
        house.settle()
        active.say({"unsubscribe": {"channel": "x"}})
        house.settle()
    assert idle.close_code is None
    for _ in range(12):
        house.clock.advance(3)
        active.say({"unsubscribe": {"channel": "x"}})
        house.settle()
    assert (idle.close_code, active.close_code) == (3012, None)
    assert house.reaper.idle == 1
    house.check()


def test_active_every_ten_seconds_is_there_after_half_an_hour() -> None:  # R1
    house = swept()
    client = house.enter("ann")
    for _ in range(180):
        house.clock.advance(10)
        house.settle()
        while client.pings:
            client.pong()
        client.say({"unsubscribe": {"channel": "x"}})
        house.settle()
    assert house.inside(client) == [True]
    assert house.heartbeat.steps == {}


def test_quiet_but_ponging_is_never_stale() -> None:  # R8
    house = swept()
    client = house.enter("ann")
    for _ in range(1800):
        house.clock.advance(1)
        house.settle()
        while client.pings:
            client.pong()
    assert house.inside(client) == [True]


def test_a_closed_connection_that_is_still_there_is_aborted() -> None:  # L27
    house = swept(ping_interval=1e6, heartbeat_timeout=1e7)
    client = house.enter("ann")
    client.driver.malformed()
    house.clock.advance(30)
    client.aborted = False  # the first was in vain
    house.clock.advance(200)
    assert client.aborted
    assert house.reaper.aborted >= 1


def test_one_bad_record_does_not_end_it() -> None:
    house = swept(ping_interval=1e6, heartbeat_timeout=1e7)
    clients = [house.enter(f"user{number}") for number in range(5)]
    records = list(house.registry.slots())
    records[2].active = None  # type: ignore[assignment]  # a fault, not what is tested
    house.clock.advance(33)
    assert (house.reaper.rounds, house.reaper.failures) == (1, 1)
    assert house.inside(*clients) == [True] * 5
    for record in (*records[:2], *records[3:]):
        record.active = house.clock.now() - 1000.0
    house.clock.advance(33)
    house.settle()
    assert (house.reaper.rounds, house.reaper.failures) == (2, 2)
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
    house = swept()
    sweep, clock = house.reaper, house.clock
    clock.advance(300)
    assert sweep.fault() is None
    sweep.stop()  # as if it hung
    clock.advance(60 - (clock.now() - (clock.now() // 1)))
    clock.advance(40)
    fault = sweep.fault()
    assert fault is not None and not fault.failing
    assert fault.reason.startswith("the last sweep was ")


def test_slots_that_are_counted_wrong_are_logged_and_counted() -> None:  # R7
    house = swept()
    ann, _ = house.enter("ann"), house.enter("bob")
    house.clock.advance(33)
    assert house.reaper.miscounted == 0
    record = house.registry.find(ann.driver.identity.client)
    assert record is not None
    record.has_slot = False  # as a bug might do
    with capture_logs() as logs:
        house.clock.advance(33)
    assert house.reaper.miscounted == 1
    [said] = [one for one in logs if one["log_level"] == "warning"]
    assert (said["event"], said["connections"]) == ("the registry counts wrong", 1)

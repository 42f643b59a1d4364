"""The reaper: its rounds are on time whatever fails, and what they find. R7"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.connections.reaper import Reaper
from service.connections.registry import Registry
from service.core.errors import Close
from tests.clock import VirtualClock
from tests.world.scripted import ScriptedWorld, limited


def swept(**options: Any) -> ScriptedWorld:
    world = limited(**options)
    world.reaper.start()
    return world


@pytest.mark.requirement("R7")
def test_a_round_begins_every_thirty_seconds_give_or_take_a_tenth() -> None:
    world = swept()
    sweep, clock = world.reaper, world.clock
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


@pytest.mark.requirement("R8")
def test_who_neither_gives_nor_takes_is_closed_in_the_end() -> None:
    # Without pings, as if their timer were broken: only the backstop is left.
    world = swept(ping_interval=1e6, heartbeat_timeout=1e7)
    idle, active = world.enter("ann"), world.enter("bob")
    for _ in range(60):
        world.clock.advance(3)
        world.settle()
        active.say({"unsubscribe": {"channel": "x"}})
        world.settle()
    assert idle.close_code is None
    for _ in range(12):
        world.clock.advance(3)
        active.say({"unsubscribe": {"channel": "x"}})
        world.settle()
    assert (idle.close_code, active.close_code) == (3012, None)
    assert world.reaper.idle == 1
    world.check()


@pytest.mark.requirement("B27")
def test_a_sweep_closes_the_idle_third_of_a_hundred_once_and_nobody_else() -> None:
    world = swept(ping_interval=1e6, heartbeat_timeout=1e7)
    clients = [world.enter(f"user{number}") for number in range(100)]
    idle, active = clients[::3], [c for c in clients if c not in clients[::3]]
    for _ in range(8):  # 320 s: the sweeps after 180 s find them
        world.clock.advance(40)
        for client in active:
            client.say({"unsubscribe": {"channel": "x"}})
        world.settle()
    assert world.reaper.rounds >= 9
    assert world.reaper.idle == len(idle) == 34
    assert [client.close_code for client in idle] == [3012] * 34
    assert world.inside(*active) == [True] * 66
    world.check()


@pytest.mark.requirement("R1")
def test_active_every_ten_seconds_is_there_after_half_an_hour() -> None:
    world = swept()
    client = world.enter("ann")
    for _ in range(180):
        world.clock.advance(10)
        world.settle()
        while client.pings:
            client.pong()
        client.say({"unsubscribe": {"channel": "x"}})
        world.settle()
    assert world.inside(client) == [True]
    assert world.liveness_stats.steps == {}


@pytest.mark.requirement("R8")
def test_quiet_but_ponging_is_never_stale() -> None:
    world = swept()
    client = world.enter("ann")
    for _ in range(1800):
        world.clock.advance(1)
        world.settle()
        while client.pings:
            client.pong()
    assert world.inside(client) == [True]


@pytest.mark.requirement("L27")
def test_a_closed_connection_that_is_still_there_is_aborted() -> None:
    world = swept(ping_interval=1e6, heartbeat_timeout=1e7)
    client = world.enter("ann")
    client.connection.malformed()
    world.clock.advance(30)
    client.aborted = False  # the first was in vain
    world.clock.advance(200)
    assert client.aborted
    assert world.reaper.aborted >= 1


@pytest.mark.requirement("R7")
def test_one_bad_record_does_not_end_it() -> None:
    world = swept(ping_interval=1e6, heartbeat_timeout=1e7)
    clients = [world.enter(f"user{number}") for number in range(5)]
    records = list(world.registry.slots())
    records[2].active = None  # type: ignore[assignment]  # a fault, not what is tested
    world.clock.advance(33)
    assert (world.reaper.rounds, world.reaper.failures) == (1, 1)
    assert world.inside(*clients) == [True] * 5
    for record in (*records[:2], *records[3:]):
        record.active = world.clock.now() - 1000.0
    world.clock.advance(33)
    world.settle()
    assert (world.reaper.rounds, world.reaper.failures) == (2, 2)
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


@pytest.mark.requirement("R7")
def test_health_is_degraded_when_the_sweep_is_two_periods_late() -> None:
    world = swept()
    sweep, clock = world.reaper, world.clock
    clock.advance(300)
    assert sweep.fault() is None
    sweep.stop()  # as if it hung
    clock.advance(60 - (clock.now() - (clock.now() // 1)))
    clock.advance(40)
    fault = sweep.fault()
    assert fault is not None and not fault.failing
    assert fault.reason.startswith("the last sweep was ")


@pytest.mark.requirement("R7")
def test_slots_that_are_counted_wrong_are_logged_and_counted() -> None:
    world = swept()
    ann, _ = world.enter("ann"), world.enter("bob")
    world.clock.advance(33)
    assert world.reaper.miscounted == 0
    record = world.registry.find(ann.connection.identity.client)
    assert record is not None
    record.has_slot = False  # as a bug might do
    with capture_logs() as logs:
        world.clock.advance(33)
    assert world.reaper.miscounted == 1
    [said] = [one for one in logs if one["log_level"] == "warning"]
    assert (said["event"], said["connections"]) == ("the registry counts wrong", 1)

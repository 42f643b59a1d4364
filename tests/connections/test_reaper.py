"""The sweep: on time, whatever fails, and what it finds. R7"""

from __future__ import annotations

from typing import Any

import pytest

from service.connections.registry import Record
from service.core.model import ClientId, UserId
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
    sweep.duties.append(lambda: times.append(clock.now()))
    clock.advance(3000)
    gaps = [b - a for a, b in zip([1000.0, *times], times, strict=False)]
    assert 90 <= len(times) <= 111
    assert all(27.0 <= gap <= 33.0 for gap in gaps)
    assert max(gaps) - min(gaps) > 3.0
    assert sweep.last_sweep_at == pytest.approx(clock.wall() - clock.now() + times[-1])
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


def test_one_bad_record_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    house = swept()
    clients = [house.enter(f"user{number}") for number in range(5)]
    registry = house.registry
    mend = registry.mend

    def fails(record: Record) -> int:
        if record.user == "user2":
            raise RuntimeError("broken")
        return mend(record)

    monkeypatch.setattr(registry, "mend", fails)  # a fault, not what is tested
    sweep = house.reaper
    sweep.duties.append(lambda: 1 / 0)
    house.clock.advance(33)
    assert (sweep.rounds, sweep.looked_at, sweep.failures) == (1, 5, 2)
    house.clock.advance(33)
    assert (sweep.rounds, sweep.looked_at, sweep.failures) == (2, 10, 4)
    assert house.inside(*clients) == [True] * 5


def test_more_than_a_portion_takes_several_turns_and_sees_each_once() -> None:
    house = swept(limits={"limit": 2000})
    for number in range(1201):
        house.enter(f"user{number}", settle=False)
    house.settle()
    house.clock.advance(33)
    assert (house.reaper.rounds, house.reaper.looked_at) == (1, 1201)


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


@pytest.mark.parametrize("wrong", ["user", "client", "admitted", "lost", "ghost"])
def test_what_is_counted_wrong_is_counted_anew(wrong: str) -> None:  # R7
    house = swept()
    ann = house.enter("ann")
    bob = house.enter("bob")
    registry = house.registry
    record = registry.find(ann.driver.identity.client)
    assert record is not None
    # What a bug might do to it.
    if wrong == "user":
        registry._users[UserId("eve")] = registry._users.pop(UserId("ann"))
    elif wrong == "client":
        registry._slots[ClientId("x")] = registry._slots.pop(record.client)
    elif wrong == "admitted":
        record.admitted = False
    elif wrong == "lost":
        del registry._users[UserId("ann")]
    else:
        del registry._records[ann.driver]
    house.clock.advance(33)
    assert house.reaper.repaired == 1
    if wrong == "ghost":
        ann.gone()
    elif wrong == "admitted":
        assert registry.connected == 1
    else:
        assert registry.of_user(UserId("ann")) == [ann.driver]
    assert registry.of_user(UserId("bob")) == [bob.driver]
    house.check()
    house.clock.advance(33)
    assert house.reaper.repaired == 1

"""Outages of the broker that one process alone has: the others poll meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from service.stores.dynamodb import broker_outages
from service.stores.dynamodb.broker_outages import BrokerOutages
from tests.agents.fakes import FakeState
from tests.clock import VirtualClock

PERIOD, TTL = broker_outages.PERIOD, broker_outages.TTL


class Heads:
    """Whether all is polled, and how often that has changed."""

    def __init__(self) -> None:
        self.polls_all = False
        self.calls: list[bool] = []

    def poll_covered(self, why: str, holds: bool) -> None:
        if holds != self.polls_all:
            self.polls_all = holds
            self.calls.append(holds)


class Process:
    """A process and its connection to the broker."""

    def __init__(self, state: FakeState, clock: VirtualClock) -> None:
        self.reason: str | None = None
        self.heads = Heads()
        self.outages = BrokerOutages(
            self,  # type: ignore[arg-type]
            state,
            self.heads,  # type: ignore[arg-type]
            clock,
        )

    def fault(self) -> str | None:
        return self.reason


class World:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.state = FakeState(self.clock)
        self.here, self.there = [Process(self.state, self.clock) for _ in range(2)]
        for process in (self.here, self.there):
            process.outages.start()

    async def turn(self, seconds: float = 0.0) -> None:
        while seconds > 0:
            step = min(PERIOD / 2, seconds)
            seconds -= step
            self.clock.advance(step)
            for _ in range(10):
                await asyncio.sleep(0)

    async def close(self) -> None:
        for process in (self.here, self.there):
            await process.outages.close()


@pytest.fixture
async def world():
    world = World()
    await asyncio.sleep(0)
    yield world
    await world.close()


async def test_the_others_poll_while_one_is_cut_off_and_a_period_longer(world):
    await world.turn(10)
    assert world.there.heads.calls == []
    world.here.reason = "no connection"
    await world.turn(2 * PERIOD)
    assert world.there.heads.polls_all
    assert not world.here.heads.polls_all  # it polls because it is cut off itself
    await world.turn(3 * TTL)
    assert world.there.heads.calls == [True]
    world.here.reason = None
    await world.turn(PERIOD)
    assert world.there.heads.polls_all
    await world.turn(2 * PERIOD)
    assert world.there.heads.calls == [True, False]
    assert world.state.values == {}


async def test_with_both_cut_off_each_knows_of_the_other(world):
    world.here.reason = world.there.reason = "no connection"
    await world.turn(3 * PERIOD)
    assert world.here.heads.polls_all and world.there.heads.polls_all


async def test_an_outage_of_a_process_that_died_ends(world):
    world.here.reason = "no connection"
    await world.turn(2 * PERIOD)
    await world.here.outages.close()
    await world.turn(TTL + PERIOD)
    assert world.there.heads.calls == [True, False]


async def test_a_short_outage_is_told_until_its_last_publication_was_polled(world):
    world.here.reason = "no connection"
    await world.turn(PERIOD)
    world.here.reason = None
    await world.turn(PERIOD)
    assert world.there.heads.polls_all
    await world.turn(3 * PERIOD)
    assert not world.there.heads.polls_all

"""Cluster sync: one call of each kind at a time, whatever the directory does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping

import pytest

from service.connections.cluster_sync import ClusterSync
from service.connections.registry import Registry
from service.core.errors import StoreUnavailable
from service.core.model import ClientId
from tests.clock import VirtualClock
from tests.world.scripted import limited


class Directory:
    """A directory whose calls end when told.

    Attributes:
        asked: Calls of `evictions` under way.
        reports: What `touch` was given.
        reporting: Calls of `touch` under way.
    """

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[list[ClientId]]] = []
        self.reports: list[Mapping[ClientId, float]] = []
        self.reporting: list[asyncio.Future[None]] = []
        self.left = False

    @property
    def directory(self) -> Directory:
        return self

    async def evictions(self) -> list[ClientId]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    async def touch(self, clients: Mapping[ClientId, float]) -> None:
        self.reports.append(clients)
        self.reporting.append(asyncio.get_running_loop().create_future())
        await self.reporting[-1]

    async def close(self) -> None:
        self.left = True


class Evicted:
    """`ConnectionLimits`, of which only `evict` is called."""

    def __init__(self) -> None:
        self.clients: list[ClientId] = []

    def evict(self, clients: list[ClientId]) -> None:
        self.clients += clients


def make(
    directory: Directory, clock: VirtualClock, registry: Registry | None = None
) -> tuple[ClusterSync, Evicted]:
    evicted = Evicted()

    def spawn(work: Awaitable[None]) -> object:
        return asyncio.ensure_future(work)

    sync = ClusterSync(registry or Registry(), evicted, directory, clock, spawn)
    sync.start()
    return sync, evicted


async def advance(clock: VirtualClock, seconds: float) -> None:
    """Move the clock a second at a time, and let each call begin or end in it."""
    for step in range(int(seconds) + 1):
        clock.advance(1.0 if step else 0.0)
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.mark.parametrize("fails", [False, True])
async def test_evictions_are_asked_for_every_second_once_at_a_time(fails: bool) -> None:
    directory, clock = Directory(), VirtualClock()
    sync, evicted = make(directory, clock)
    await advance(clock, 5)
    assert len(directory.asked) == 1  # the first has not answered
    if fails:
        directory.asked[0].set_exception(StoreUnavailable("cut off"))
    else:
        directory.asked[0].set_result([ClientId("a"), ClientId("b")])
    await advance(clock, 1)
    assert evicted.clients == ([] if fails else ["a", "b"])
    assert len(directory.asked) == 2
    directory.asked[1].set_result([ClientId("c")])
    await advance(clock, 1)
    assert evicted.clients[-1:] == ["c"]
    await sync.close()


@pytest.mark.parametrize("fails", [False, True])
async def test_every_minute_it_reports_when_clients_were_active(fails: bool) -> None:
    world = limited(ping_interval=86400.0, heartbeat_timeout=864000.0)  # no pings
    world.enter("ann")
    [slot] = world.registry.slots()
    directory, clock = Directory(), world.clock
    sync, _ = make(directory, clock, world.registry)
    wall = clock.wall() - clock.now() + slot.active
    await advance(clock, 59)
    assert directory.reports == []
    await advance(clock, 1)
    assert directory.reports == [{slot.client: wall}]
    await advance(clock, 120)
    assert len(directory.reports) == 1  # the first has not ended
    if fails:
        directory.reporting[0].set_exception(StoreUnavailable("cut off"))
    else:
        directory.reporting[0].set_result(None)
    await advance(clock, 2)
    assert len(directory.reports) == 2
    await sync.close()


async def test_the_close_ends_the_timer_and_leaves_the_directory() -> None:
    directory, clock = Directory(), VirtualClock()
    sync, _ = make(directory, clock)
    await sync.close()
    assert directory.left
    assert clock.pending == []


async def test_a_hint_makes_it_look_at_once_and_once_more_if_it_is_looking() -> None:
    directory, clock = Directory(), VirtualClock()
    sync, evicted = make(directory, clock)
    sync.look()
    await asyncio.sleep(0)
    assert len(directory.asked) == 1
    for _ in range(3):
        sync.look()
    await asyncio.sleep(0)
    assert len(directory.asked) == 1  # what is under way may have begun too early
    directory.asked[0].set_result([])
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(directory.asked) == 2
    directory.asked[1].set_result([ClientId("a")])
    for _ in range(3):
        await asyncio.sleep(0)
    assert (len(directory.asked), evicted.clients) == (2, ["a"])
    await sync.close()

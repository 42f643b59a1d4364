"""The loop monitor: the lag is measured, kept, and logged once."""

from __future__ import annotations

from random import Random

import pytest
from structlog.testing import capture_logs

from service.connections.loop_monitor import LoopMonitor
from service.connections.overload import Overload
from tests.clock import VirtualClock
from tests.connections.conftest import MakeWorld
from tests.world.loop import LoopWorld, settings


def monitor(world: LoopWorld) -> LoopMonitor:
    context = world.context
    overload = Overload(
        world.context.settings.overload,
        world.shedding,
        queued=lambda: context.flusher.stuck_bytes,
        appends=lambda: 0.0,
        limit=lambda: None,
    )
    metrics, clock = context.metrics, world.clock
    return LoopMonitor(world.registry, metrics, clock, Random(1), overload)


def histogram(world: LoopWorld) -> dict[float, int]:
    lag = world.context.metrics.lag
    pairs = zip((*lag.bounds, float("inf")), lag.counts, strict=True)
    return {bound: count for bound, count in pairs if count}


async def test_a_loop_that_is_in_time_has_no_lag(
    world: LoopWorld, clock: VirtualClock
) -> None:
    watch = monitor(world)
    watch.start()
    clock.advance(10.0)
    assert histogram(world) == {0.001: 40}
    assert watch.worst == 0.0
    watch.stop()
    clock.advance(10.0)
    assert histogram(world) == {0.001: 40}
    assert clock.pending == []


@pytest.mark.requirement("L11")
async def test_a_blocked_loop_is_measured_and_said_once(
    world: LoopWorld, clock: VirtualClock
) -> None:
    watch = monitor(world)
    watch.start()
    with capture_logs() as logs:
        clock.stall(0.65)  # due after 0.25 s
        clock.stall(0.55)
        clock.stall(0.45)  # below what is said
        assert histogram(world) == {0.25: 1, 0.5: 2}
        assert [entry["seconds"] for entry in logs] == [0.4]
        clock.advance(61.0)
        clock.stall(0.75)
    assert [entry["seconds"] for entry in logs] == [0.4, 0.5]
    assert [entry["log_level"] for entry in logs] == ["warning", "warning"]
    watch.stop()


async def test_the_largest_lag_is_shown_for_a_minute_or_two(
    world: LoopWorld, clock: VirtualClock
) -> None:
    watch = monitor(world)
    watch.start()
    clock.stall(2.25)
    assert watch.worst == pytest.approx(2.0)
    clock.advance(60.0)
    assert watch.worst == pytest.approx(2.0)
    clock.advance(61.0)
    assert watch.worst == 0.0
    watch.stop()


async def test_what_waits_for_sockets_is_sampled(
    make_world: MakeWorld, clock: VirtualClock
) -> None:
    world = await make_world(settings({"write_timeout": 3600.0, "ping_interval": 3000}))
    (_, idle), (_, stuck) = await world.connect("a"), await world.connect("a")
    assert not idle.closes
    stuck.stop_reading()
    await world.publish("a", size=2000)
    await world.publish("a", size=3000)
    await idle.until(lambda: len(idle.offsets("a")) == 2)
    watch = monitor(world)
    watch.start()
    clock.advance(1.0)
    queue = world.context.metrics.queue
    pairs = zip((*queue.bounds, float("inf")), queue.counts, strict=True)
    assert {bound: count for bound, count in pairs if count} == {0.0: 1, 4096.0: 1}
    assert 3000 < queue.sum < 3200
    watch.stop()


async def test_of_many_connections_a_hundred_are_sampled(
    world: LoopWorld, clock: VirtualClock
) -> None:
    for _ in range(150):
        world.open()
    watch = monitor(world)
    watch.start()
    clock.advance(3.0)
    assert sum(world.context.metrics.queue.counts) == 300
    watch.stop()

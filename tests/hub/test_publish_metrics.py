"""Publish metrics: one publication in 64 is timed, to the end of its pushes."""

from __future__ import annotations

from collections.abc import Callable

from service.connections.flusher import Flusher
from service.core.errors import StoreUnavailable
from service.core.model import Appended, Position
from service.hub.publish_metrics import PublishMetrics
from service.metrics import Metrics
from tests.clock import VirtualClock

DONE = Appended(Position(1, "e"), True)


class Bench:
    def __init__(self) -> None:
        self.clock, self.metrics = VirtualClock(), Metrics()
        self.turns: list[Callable[[], None]] = []
        self.outcomes: list[object] = []
        flusher = Flusher(self.turns.append, self.clock)
        self.publishes = PublishMetrics(self.metrics, self.clock, flusher)

    def publish(self) -> Callable[..., None]:
        return self.publishes.publishing(self.outcomes.append)

    @property
    def timed(self) -> int:
        return sum(self.metrics.latency.counts)


def test_the_first_is_timed_and_then_one_in_64() -> None:
    bench = Bench()
    for _ in range(129):
        bench.publish()(DONE)
    for turn in bench.turns:
        turn()
    assert bench.timed == 3
    assert bench.outcomes == [DONE] * (129)


def test_the_time_ends_when_the_pushes_are_written() -> None:
    bench = Bench()
    done = bench.publish()
    bench.clock.advance(0.5)
    done(DONE)
    assert bench.timed == 0
    bench.clock.advance(0.25)
    [turn] = bench.turns
    turn()
    assert bench.timed == 1
    assert bench.metrics.latency.sum == 0.75


def test_a_publication_that_failed_is_not_timed() -> None:
    bench = Bench()
    error = StoreUnavailable("cut off")
    bench.publish()(error)
    assert bench.outcomes == [error]
    assert bench.turns == []
    assert bench.timed == 0


def test_a_commit_is_counted_with_its_size() -> None:
    bench = Bench()
    bench.publishes.committed(3)
    bench.publishes.committed(1)
    assert bench.metrics.publications.value == 4
    assert (sum(bench.metrics.batch.counts), bench.metrics.batch.sum) == (2, 4)

"""The shed level: it rises at once, falls when it is calm, and does not flap."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.shedding import Shedding
from tests.clock import VirtualClock

CALM = 10.0


def shedding() -> Shedding:
    return Shedding(CALM, Random(1))


def pushes(found: Shedding) -> tuple[bool, bool]:
    """Return whether joins and leaves are held back, and publications shed."""
    return found.holds_joins_and_leaves, found.sheds_publication()


@pytest.mark.requirement("L20")
def test_it_rises_at_once_and_falls_when_it_was_calm() -> None:
    found = shedding()
    assert not found.observe(0.0, {"memory": 0})
    assert found.observe(1.0, {"memory": 3})
    assert (found.level, found.refuses_connections) == (3, True)
    assert not found.observe(10.75, {"memory": 0})
    assert found.observe(11.0, {"memory": 0})
    assert (found.level, found.refuses_connections) == (0, False)
    assert found.changes == {3: 1, 0: 1}


def test_it_falls_by_as_many_levels_as_were_calm() -> None:
    found = shedding()
    found.observe(0.0, {"memory": 3})
    found.observe(4.0, {"memory": 2})
    found.observe(7.0, {"memory": 1})
    levels = []
    for now in (9.75, 10.0, 13.75, 14.0, 16.75, 17.0):
        found.observe(now, {"memory": 0})
        levels.append(found.level)
    assert levels == [3, 2, 2, 1, 1, 0]


def test_the_highest_watchdog_counts_and_each_is_a_cause() -> None:
    found = shedding()
    found.observe(0.0, {"memory": 1, "loop_lag": 2, "queued": 0})
    assert (found.level, found.causes) == (2, {"memory": 1, "loop_lag": 2, "queued": 0})
    found.observe(6.0, {"memory": 1, "loop_lag": 0, "queued": 0})
    found.observe(10.0, {"memory": 1, "loop_lag": 0, "queued": 0})
    assert (found.level, found.causes) == (1, {"memory": 1, "loop_lag": 0, "queued": 0})


@pytest.mark.requirement("L20", "B53")
@pytest.mark.parametrize(
    ("level", "connections", "joins", "reads"),
    [
        (0, False, False, False),
        (1, True, False, False),
        (2, True, True, False),
        (3, True, True, True),
    ],
)
def test_what_each_level_sheds(
    level: int, connections: bool, joins: bool, reads: bool
) -> None:
    found = shedding()
    found.observe(0.0, {"memory": level})
    assert found.refuses_connections is connections
    assert found.holds_joins_and_leaves is joins
    assert found.sheds_publication() is reads
    assert found.refuses_read() is reads
    assert (found.publications, found.reads) == (reads, reads)


@pytest.mark.requirement("L20", "L7")
def test_publications_are_shed_when_joins_and_leaves_were_not_enough() -> None:
    found = shedding()
    found.observe(0.0, {"queued": 2})
    found.observe(0.75, {"queued": 2})
    assert pushes(found) == (True, False)
    found.observe(1.0, {"queued": 1})  # it was enough
    assert pushes(found) == (True, False)
    found.observe(1.25, {"queued": 2})
    assert pushes(found) == (True, True)
    found.observe(11.0, {"queued": 1})  # and stays so while the level does
    assert pushes(found) == (True, True)
    found.observe(11.25, {"queued": 1})
    assert found.level == 1
    assert pushes(found) == (False, False)
    found.observe(12.0, {"queued": 2})  # anew
    assert pushes(found) == (True, False)


def test_the_refused_come_back_at_different_times() -> None:
    found = shedding()
    waits = [found.retry_after for _ in range(1000)]
    assert min(waits) >= CALM
    assert max(waits) < 2 * CALM
    seconds = [int(wait - CALM) for wait in waits]
    assert {
        second: seconds.count(second) > 50 for second in range(10)
    } == dict.fromkeys(range(10), True)


# Steps of the clock in quarters of a second, and what two watchdogs find then.
walks = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 3), st.integers(0, 3)), max_size=60
)


@pytest.mark.requirement("L20", "B53")
@given(walks)
def test_it_is_the_highest_of_the_last_seconds_and_never_flaps(
    walk: list[tuple[int, int, int]],
) -> None:
    clock, found = VirtualClock(now=0.0), shedding()
    seen: list[tuple[float, int]] = []
    rises: list[float] = []
    falls: list[float] = []
    for quarters, memory, lag in walk:
        clock.advance(quarters / 4)
        now, before = clock.now(), found.level
        changed = found.observe(now, {"memory": memory, "loop_lag": lag})
        seen.append((now, max(memory, lag)))
        # The whole specification in one line.
        assert found.level == max(level for at, level in seen if now - at < CALM)
        assert changed == (found.level != before)
        if found.level > before:
            rises.append(now)
        elif found.level < before:
            falls.append(now)
            # No fall within the calm time of a cause for the level that was left.
            assert all(now - at >= CALM for at, level in seen if level >= before)
    # Each level falls at most once in a calm time: three at most in each.
    assert len(falls) <= 3 * (1 + clock.now() // CALM)
    assert sum(found.changes.values()) == len(rises) + len(falls)

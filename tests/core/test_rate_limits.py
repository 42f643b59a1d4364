"""Token buckets against arithmetic in fractions, and maps that somebody fills."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from service.core.rate_limits import Bucket, Buckets, Failures, Holders, Rate, rate_of

# Numbers that binary fractions hold exactly, so that boundaries can be hit exactly.
RATES = st.sampled_from([0.125, 0.5, 1.0, 2.0, 20.0, 1000.0])
BURSTS = st.sampled_from([1.0, 1.5, 2.0, 5.0, 10.0, 5000.0])
STEPS = st.integers(0, 4096).map(lambda n: n / 1024)
CALLS = st.lists(st.tuples(STEPS, st.integers(1, 40)), max_size=60)


def exact(
    rate: Rate, calls: list[tuple[float, int]], start: float
) -> list[tuple[Fraction, int]]:
    """Return when how many tokens are granted, by the definition of a bucket."""
    level, now = Fraction(rate.burst), Fraction(start)
    granted = []
    for step, wanted in calls:
        now += Fraction(step)
        level = min(Fraction(rate.burst), level + Fraction(step) * Fraction(rate.rate))
        given_ = min(wanted, math.floor(level))
        level -= given_
        granted.append((now, given_))
    return granted


@given(RATES, BURSTS, CALLS, st.sampled_from([0.0, 1000.0, 2.0**30]))
def test_a_bucket_is_exact(
    per_second: float, burst: float, calls: list[tuple[float, int]], start: float
) -> None:
    rate = Rate(per_second, burst)
    bucket, now = Bucket(start), start
    granted = []
    for step, wanted in calls:
        now += step
        granted.append((Fraction(now), bucket.take(rate, now, wanted)))
    assert granted == exact(rate, calls, start)
    # Over no stretch of time is it more than the burst and what came meanwhile.
    for first in range(len(granted)):
        total = 0
        for when, count in granted[first:]:
            total += count
            elapsed = when - granted[first][0]
            assert total <= Fraction(burst) + Fraction(per_second) * elapsed


def test_a_token_is_there_exactly_when_it_is_due() -> None:
    rate = Rate(4.0, 2.0)
    bucket = Bucket(100.0)
    assert bucket.take(rate, 100.0, 5) == 2
    assert bucket.take(rate, 100.0) == 0
    assert bucket.wait(rate, 100.0) == 0.25
    assert bucket.take(rate, math.nextafter(100.25, 0)) == 0
    assert bucket.wait(rate, 100.25) == 0.0
    assert bucket.take(rate, 100.25) == 1
    assert bucket.take(rate, 100.25) == 0
    assert not bucket.is_full(rate, math.nextafter(100.75, 0))
    assert bucket.is_full(rate, 100.75)
    # A long pause gives no more than the burst.
    assert bucket.take(rate, 1e9, 100) == 2


def test_nothing_drifts_in_a_million_takes_at_the_rate() -> None:
    # 1/1000 s is no binary fraction: what is added up would be wrong by now.
    rate = Rate(1000.0, 5.0)
    bucket = Bucket(0.0)
    granted = sum(bucket.take(rate, n / 2000) for n in range(1_000_000))
    assert granted == 5 + 499_999


def test_a_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    rate = Rate(1.0, 3.0)
    bucket = Bucket(100.0)
    assert bucket.take(rate, 100.0, 2) == 2
    assert bucket.take(rate, 50.0, 5) == 1
    assert bucket.take(rate, 50.0) == 0
    assert bucket.take(rate, 100.0) == 0
    assert bucket.take(rate, 101.0) == 1


def test_rate_of_settings() -> None:
    assert rate_of(20.0, 5.0) == Rate(20.0, 100.0)
    assert rate_of(0.1, 5.0) == Rate(0.1, 1.0)  # below one, nothing would ever pass
    assert rate_of(0.0, 5.0) is None
    assert rate_of(None, 5.0) is None


# Buckets by key.


def test_keys_do_not_share_unless_there_is_no_room() -> None:
    buckets = Buckets[str](Rate(1.0, 2.0), capacity=2)
    assert [buckets.take(key, 0.0, 2) for key in "ab"] == [2, 2]
    # There is no room for these: they have one bucket together.
    assert [buckets.take(key, 0.0) for key in "cdef"] == [1, 1, 0, 0]
    assert buckets.wait("x", 0.0) == 1.0
    assert len(buckets) == 2
    # Nobody who was limited is let go by that.
    assert [buckets.take(key, 0.0) for key in "ab"] == [0, 0]
    # A bucket that is full again makes room.
    assert [buckets.take(key, 2.0, 2) for key in "cd"] == [2, 2]
    assert [buckets.take(key, 2.0, 2) for key in "c"] == [0]


def test_an_attacker_with_many_addresses_frees_nobody() -> None:
    buckets = Buckets[int](Rate(1.0, 3.0), capacity=100)
    assert buckets.take(-1, 0.0, 10) == 3
    granted = sum(buckets.take(key, 0.5) for key in range(10_000))
    # 99 of their own, and three more for all the others.
    assert granted == 99 + 3
    assert len(buckets) == 100
    assert buckets.take(-1, 0.5) == 0
    assert buckets.take(-1, 1.0) == 1


def test_what_is_not_used_any_more_is_forgotten() -> None:
    buckets = Buckets[int](Rate(1.0, 3.0), capacity=100_000)
    for key in range(1000):
        buckets.take(key, 0.0)
    assert len(buckets) == 1000
    for key in range(1000, 3000):
        buckets.take(key, 10.0 + key)
    assert len(buckets) <= 2


def test_a_new_key_forgets_two_of_the_full_ones_at_most() -> None:
    buckets = Buckets[int](Rate(1.0, 1.0), capacity=100)
    for key in range(5):
        buckets.take(key, 0.0)
    for key, left in ((5, 4), (6, 3), (7, 3)):
        buckets.take(key, 1.0)
        assert len(buckets) == left


def test_the_one_used_last_is_the_last_to_be_looked_at() -> None:
    buckets = Buckets[str](Rate(1.0, 2.0), capacity=100)
    buckets.take("a", 0.0)
    buckets.take("b", 0.0)
    buckets.take("a", 5.0)
    buckets.take("c", 5.0)  # "b" is full and goes, "a" is not
    assert len(buckets) == 2
    assert buckets.take("a", 5.0, 2) == 1


def test_one_that_is_not_full_hides_none_that_is_when_there_is_no_room() -> None:
    buckets = Buckets[str](Rate(1.0, 2.0), capacity=2)
    buckets.take("a", 0.0, 2)
    buckets.take("b", 0.0)
    assert buckets.take("c", 1.0, 2) == 2  # in the place of "b"
    assert buckets.take("d", 1.0, 2) == 2  # of those that share
    assert buckets.take("a", 1.0, 2) == 1
    assert len(buckets) == 2


def test_one_token_is_taken_unless_more_are_wanted() -> None:
    rate = Rate(1.0, 5.0)
    assert Bucket(0.0).take(rate, 0.0) == 1
    assert Buckets[str](rate, 1).take("a", 0.0) == 1


class BucketsMachine(RuleBasedStateMachine):
    """Any keys, any times: a key gets no more than its rate while there is room."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rate = Rate(2.0, 4.0)
        self.buckets = Buckets[int](self.rate, capacity=4)
        self.granted: dict[int, list[tuple[float, int]]] = {}
        self.unknown: list[tuple[float, int]] = []

    @rule(step=st.integers(0, 64).map(lambda n: n / 16))
    def wait(self, step: float) -> None:
        self.now += step

    @rule(key=st.integers(0, 9), wanted=st.integers(1, 6))
    def take(self, key: int, wanted: int) -> None:
        count = self.buckets.take(key, self.now, wanted)
        assert 0 <= count <= wanted
        self.granted.setdefault(key, []).append((self.now, count))
        if count < wanted:
            assert self.buckets.wait(key, self.now) > 0

    @invariant()
    def bounded(self) -> None:
        assert len(self.buckets) <= 4
        for grants in self.granted.values():
            since = grants[0][0]
            total = sum(count for _, count in grants)
            # Its own bucket, and what it had of the shared one.
            allowed = self.rate.burst + self.rate.rate * (self.now - since)
            assert total <= 2 * allowed


TestBuckets = BucketsMachine.TestCase


# Failures.


@pytest.mark.requirement("B96", "B100")
def test_a_key_is_blocked_at_its_last_failure_and_released_in_time() -> None:
    failures = Failures[str](3, window=60.0, block=30.0, capacity=10)
    assert [failures.failed("a", now) for now in (0.0, 1.0)] == [False, False]
    assert failures.blocked("a", 1.0) == 0.0
    assert failures.failed("a", 2.0) is True
    assert failures.blocked("a", 2.0) == 30.0
    assert failures.blocked("b", 2.0) == 0.0
    # Failures during the block do not make it longer.
    assert failures.failed("a", 20.0) is False
    assert failures.blocked("a", 31.0) == 1.0
    assert failures.blocked("a", 32.0) == 0.0
    # It begins at nothing.
    assert [failures.failed("a", now) for now in (32.0, 33.0)] == [False, False]
    assert failures.failed("a", 34.0) is True


def test_failures_count_together_within_the_window() -> None:
    failures = Failures[str](3, window=10.0, block=30.0, capacity=10)
    for now in (0.0, 9.0, 10.0, 19.0):
        assert failures.failed("a", now) is False
    assert failures.failed("a", 19.5) is True


def test_many_keys_neither_fill_the_memory_nor_release_a_block() -> None:
    failures = Failures[int](2, window=60.0, block=60.0, capacity=50)
    failures.failed(-1, 0.0)
    assert failures.failed(-1, 0.0) is True
    for key in range(1000):
        failures.failed(key, 1.0)
        failures.failed(key, 1.0)
    assert len(failures) <= 100
    assert failures.blocked(-1, 1.0) == 59.0
    # 50 are blocked; one more is when one of them is released.
    assert sum(failures.blocked(key, 1.0) > 0 for key in range(1000)) == 49
    assert failures.failed(999, 59.0) is False
    assert failures.failed(999, 60.0) is True
    assert failures.failed(-1, 500.0) is False
    assert len(failures) == 1


def test_one_failure_may_be_enough() -> None:
    failures = Failures[str](1, window=10.0, block=30.0, capacity=10)
    assert failures.failed("a", 0.0) is True
    assert failures.blocked("a", 0.0) == 30.0


def test_keys_that_are_counted_and_keys_that_are_blocked_are_held() -> None:
    failures = Failures[str](2, window=10.0, block=30.0, capacity=10)
    failures.failed("a", 0.0)
    failures.failed("a", 0.0)
    failures.failed("b", 0.0)
    assert len(failures) == 2


def test_the_key_counted_first_makes_room() -> None:
    failures = Failures[str](3, window=10.0, block=30.0, capacity=2)
    # While both are counted, neither makes room for the other.
    for key in ("a", "b", "b", "a"):
        assert failures.failed(key, 0.0) is False
    assert failures.failed("c", 0.0) is False  # in the place of "a"
    assert len(failures) == 2
    assert failures.failed("b", 0.0) is True
    assert failures.failed("a", 0.0) is False


def test_a_key_at_capacity_keeps_the_others_counted() -> None:
    failures = Failures[str](3, window=10.0, block=30.0, capacity=2)
    for key in ("a", "a", "b", "b"):
        assert failures.failed(key, 0.0) is False
    assert failures.failed("a", 0.0) is True


def test_a_block_ends_while_others_are_counted() -> None:
    failures = Failures[str](2, window=60.0, block=30.0, capacity=10)
    assert [failures.failed("a", 0.0) for _ in range(2)] == [False, True]
    assert failures.failed("b", 29.0) is False
    assert [failures.failed("a", 30.0) for _ in range(2)] == [False, True]


# Holders.


@pytest.mark.parametrize("limit", [1, 3])
def test_a_key_holds_no_more_than_its_limit(limit: int) -> None:
    holders = Holders[str](limit)
    assert [holders.hold("a") for _ in range(limit + 1)] == [True] * limit + [False]
    assert holders.hold("b")
    holders.release("a")
    assert holders.hold("a")
    assert not holders.hold("a")
    for _ in range(limit):
        holders.release("a")
    holders.release("b")
    assert len(holders) == 0


def test_without_a_limit() -> None:
    holders = Holders[str](0)
    assert all(holders.hold("a") for _ in range(1000))

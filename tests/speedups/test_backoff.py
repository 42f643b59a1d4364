"""Backoff: one contract, run on the interpreted and the compiled functions."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.speedups.twins import BACKOFF, backoff_c, backoff_py, needs_compiled

shares = st.floats(min_value=0.0, max_value=1.0)
attempts = st.integers(0, 2000) | st.integers(0, 2**70)
times = st.floats(min_value=1e-9, max_value=1e9)


@pytest.fixture(params=BACKOFF)
def side(request):
    return request.param


@pytest.mark.requirement("R14", "B35")
def test_a_delay_doubles_from_half_a_second_and_has_a_tenth_of_jitter(side):
    for attempt in range(5):
        least = 0.5 * 2**attempt
        assert side.backoff(attempt, 0.0) == least
        assert side.backoff(attempt, 1.0) == pytest.approx(least + 0.1)
        assert least <= side.backoff(attempt, 0.37) <= least + 0.1


def test_no_delay_is_longer_than_the_cap(side):
    for attempt, share in itertools.product((6, 7, 1023, 1024, 2**70), (0.0, 0.5, 1.0)):
        assert side.backoff(attempt, share) == 30.0
        assert side.backoff(attempt, share, 0.5, 10.0) == 10.0
    assert side.backoff(0, 0.0, 0.5, 0.2) == 0.2
    assert side.backoff(9, 0.0, 0.5, 0.0) == 0.0


def test_full_jitter_takes_a_share_of_the_whole_delay(side):
    assert side.backoff_full_jitter(0, 0.0) == 0.0
    assert side.backoff_full_jitter(0, 1.0) == 0.5
    assert side.backoff_full_jitter(3, 0.5) == 2.0
    assert side.backoff_full_jitter(2**70, 0.5) == 15.0


def test_the_same_seed_gives_the_same_delays(side):
    first, second = random.Random(7), random.Random(7)
    delays = [side.backoff(n, first.random()) for n in range(6)]
    assert delays == [side.backoff(n, second.random()) for n in range(6)]
    assert len({round(delay - 0.5 * 2**n, 9) for n, delay in enumerate(delays)}) == 6


@pytest.mark.parametrize("name", ["backoff", "backoff_full_jitter"])
@pytest.mark.parametrize(
    "arguments",
    [
        (-1, 0.5),
        (-(2**70), 0.5),
        (0, -0.001),
        (0, 1.001),
        (0, math.nan),
        (0, 0.5, 0.0),
        (0, 0.5, -1.0),
        (0, 0.5, math.inf),
        (0, 0.5, math.nan),
        (0, 0.5, 0.5, -1.0),
        (0, 0.5, 0.5, math.inf),
        (0, 0.5, 0.5, math.nan),
    ],
)
def test_what_is_out_of_range_is_a_value_error(side, name, arguments):
    with pytest.raises(ValueError):
        getattr(side, name)(*arguments)


@pytest.mark.parametrize("name", ["backoff", "backoff_full_jitter"])
@pytest.mark.parametrize(
    "arguments",
    [(1.5, 0.5), ("1", 0.5), (None, 0.5), (1, "0.5"), (1, None), (1, 0, "1")],
)
def test_what_is_no_number_is_a_type_error(side, name, arguments):
    with pytest.raises(TypeError):
        getattr(side, name)(*arguments)


@needs_compiled
@pytest.mark.parametrize("name", ["backoff", "backoff_full_jitter"])
@given(attempt=attempts, share=shares, base=times, cap=times)
def test_both_sides_agree_to_the_last_bit(name, attempt, share, base, cap):
    interpreted = getattr(backoff_py, name)(attempt, share, base, cap)
    assert getattr(backoff_c, name)(attempt, share, base, cap) == interpreted
    assert 0.0 <= interpreted <= cap


@needs_compiled
def test_the_extension_was_compiled_with_its_types():
    assert not hasattr(backoff_c, "_exponential"), "backoff_c.pxd was not found"

"""The ping filter: one contract, run on the interpreted and the compiled class."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.speedups.twins import COMPILED, RTT, needs_compiled, rtt_c, rtt_py

seconds = st.floats(min_value=0.0, max_value=30.0)
anything = st.floats() | st.floats(min_value=0.0, max_value=0.2)


@pytest.fixture(params=RTT)
def rtt_filter(request):
    return request.param.RttFilter()


def feed(rtt_filter, samples):
    return [rtt_filter.accept(sample) for sample in samples]


def figures(rtt_filter):
    return (
        rtt_filter.median(),
        rtt_filter.smoothed(),
        rtt_filter.variation(),
        rtt_filter.accepted,
        rtt_filter.outliers,
        rtt_filter.rejected,
        rtt_filter.clock_skew_corrections,
    )


def test_nothing_is_known_before_the_first_sample(rtt_filter):
    assert figures(rtt_filter) == (0.0, 0.0, 0.0, 0, 0, 0, 0)


@pytest.mark.requirement("R32")
def test_a_spike_is_an_outlier_and_the_median_does_not_follow_it(rtt_filter):
    feed(rtt_filter, [0.050, 0.052, 0.049, 0.051, 0.050])
    assert rtt_filter.accept(0.500) is False
    assert rtt_filter.median() == 0.050
    assert rtt_filter.outliers == 1


def test_a_spike_moves_the_smoothed_time_by_the_tolerance_at_most(rtt_filter):
    feed(rtt_filter, [0.100] * 15)
    before = rtt_filter.smoothed()
    rtt_filter.accept(29.0)
    assert rtt_filter.smoothed() - before == pytest.approx(0.001 / 8)
    rtt_filter.accept(0.0)
    assert rtt_filter.smoothed() == pytest.approx(0.100, abs=0.001)


def test_the_first_samples_always_pass(rtt_filter):
    assert feed(rtt_filter, [0.01, 9.0, 0.01, 9.0, 0.01]) == [True] * 5


def test_identical_samples_leave_one_millisecond_of_tolerance(rtt_filter):
    feed(rtt_filter, [0.0] * 15)
    assert feed(rtt_filter, [0.001, 0.00101]) == [True, False]


def test_a_lasting_slowdown_is_believed_after_half_a_window(rtt_filter):
    feed(rtt_filter, [0.020] * 15)
    assert feed(rtt_filter, [0.200] * 9) == [False] * 8 + [True]


@pytest.mark.parametrize("late", [30.000001, 31, 3600.0, 1e300])
def test_more_than_thirty_seconds_is_rejected_and_counted(rtt_filter, late):
    rtt_filter.accept(0.030)
    before = figures(rtt_filter)
    assert rtt_filter.accept(late) is False
    assert rtt_filter.rejected == 1
    assert figures(rtt_filter)[:5] == before[:5]
    assert rtt_filter.accept(30.0) is True


@pytest.mark.parametrize("bad", [-0.001, -3600, math.inf, -math.inf, math.nan])
def test_an_impossible_time_is_discarded_and_counted(rtt_filter, bad):
    rtt_filter.accept(0.030)
    before = figures(rtt_filter)
    assert rtt_filter.accept(bad) is False
    assert rtt_filter.clock_skew_corrections == 1
    assert figures(rtt_filter)[:6] == before[:6]


def test_smoothing_follows_rfc_6298(rtt_filter):
    feed(rtt_filter, [0.100])
    assert (rtt_filter.smoothed(), rtt_filter.variation()) == (0.100, 0.050)
    feed(rtt_filter, [0.200])
    assert rtt_filter.variation() == pytest.approx(0.75 * 0.050 + 0.25 * 0.100)
    assert rtt_filter.smoothed() == pytest.approx(0.875 * 0.100 + 0.125 * 0.200)


@pytest.mark.parametrize("bad", [None, "0.1", b"1", [0.1]])
def test_a_non_number_is_a_type_error(rtt_filter, bad):
    with pytest.raises(TypeError):
        rtt_filter.accept(bad)


def test_an_integer_beyond_any_float_is_an_overflow_error(rtt_filter):
    with pytest.raises(OverflowError):
        rtt_filter.accept(10**400)


def test_there_are_no_other_attributes(rtt_filter):
    with pytest.raises(AttributeError):
        rtt_filter.other = 1


@pytest.mark.parametrize("module", RTT)
@given(samples=st.lists(seconds, max_size=60))
def test_agrees_with_the_textbook_definition(module, samples):
    rtt_filter = module.RttFilter()
    smoothed = variation = 0.0
    for i, sample in enumerate(samples):
        window = samples[max(0, i - 15) : i]
        usual = True
        damped = sample
        if len(window) >= 5:
            median = statistics.median_low(window)
            mad = statistics.median_low([abs(x - median) for x in window])
            limit = max(3.0 * 1.4826 * mad, 0.001)
            usual = abs(sample - median) <= limit
            assert rtt_filter.median() == median
            damped = min(max(sample, median - limit), median + limit)
        if i == 0:
            smoothed, variation = sample, sample / 2
        else:
            variation = 0.75 * variation + 0.25 * abs(smoothed - damped)
            smoothed = 0.875 * smoothed + 0.125 * damped
        assert rtt_filter.accept(sample) is usual
        assert rtt_filter.smoothed() == pytest.approx(smoothed)
        assert rtt_filter.variation() == pytest.approx(variation)


@needs_compiled
@given(st.lists(anything, max_size=60))
def test_both_sides_give_the_same_answers_to_the_last_bit(samples):
    interpreted, compiled = rtt_py.RttFilter(), rtt_c.RttFilter()
    for sample in samples:
        assert interpreted.accept(sample) is compiled.accept(sample)
        assert figures(interpreted) == figures(compiled)


@pytest.mark.skipif(not COMPILED, reason="extensions not built")
def test_the_extension_was_compiled_with_its_types():
    assert not hasattr(rtt_c.RttFilter, "_insert"), "rtt_c.pxd was not found"

"""The fates of segments: exact for a seed, and in the shares that a profile says."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faultproxy.profiles import LOSSES, PROFILES, Fates, Profile


def drawn(profile: Profile, count: int, seed: int = 7) -> list[float]:
    fates = Fates(seed, 1, "up")
    return [fates.latency(profile) for _ in range(count)]


def test_the_four_profiles() -> None:
    figures = {
        name: (profile.delay, profile.jitter, profile.loss, profile.cut_every)
        for name, profile in PROFILES.items()
    }
    assert figures == {
        "clear": (0.0, 0.0, 0.0, None),
        "stable": (0.001, 0.0, 0.0, None),
        "unstable": (0.05, 0.02, 0.05, None),
        "poor": (0.2, 0.1, 0.1, 10.0),
        "terrible": (0.5, 0.3, 0.2, 10.0),
    }


def test_a_lost_segment_is_stalled_for_200_ms_and_doubling() -> None:
    profile = Profile(loss=0.2)
    counts = Counter(round(each, 6) for each in drawn(profile, 10_000))
    stalls = [round(0.2 * (2**lost - 1), 6) for lost in range(LOSSES + 1)]
    assert set(counts) <= set(stalls)
    # Exact for this seed; near 8,000, 1,600, 320, 64, 13 of the binomial law.
    assert [counts[stall] for stall in stalls[:5]] == EXPECTED


EXPECTED = [7995, 1575, 334, 76, 15]


def test_jitter_is_even_around_the_delay() -> None:
    latencies = drawn(Profile(delay=0.5, jitter=0.3), 10_000)
    assert 0.2 <= min(latencies) < 0.201
    assert 0.799 < max(latencies) <= 0.8
    assert abs(sum(latencies) / 10_000 - 0.5) < 0.005  # 3 standard deviations


def test_one_seed_has_one_sequence_for_each_direction_of_each_connection() -> None:
    profile = PROFILES["terrible"]
    assert drawn(profile, 50) == drawn(profile, 50)
    assert drawn(profile, 50) != drawn(profile, 50, seed=8)
    sequences = {
        tuple(Fates(7, link, way).latency(profile) for _ in range(1))
        for link in (1, 2)
        for way in ("up", "down")
    }
    assert len(sequences) == 4


def test_connections_live_for_ten_seconds_on_average() -> None:
    lives = [Fates(7, n, "life").life(PROFILES["poor"]) for n in range(2_000)]
    assert all(life is not None and life > 0 for life in lives)
    assert abs(sum(life or 0.0 for life in lives) / 2_000 - 10.0) < 0.7
    assert Fates(7, 1, "life").life(PROFILES["stable"]) is None


@pytest.mark.parametrize(
    "wrong",
    [{"loss": 1.0}, {"jitter": 0.1}, {"rate": 0.0}, {"cut_every": 0.0}],
)
def test_what_no_network_does_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(AssertionError):
        Profile(**wrong)

"""Round-trip times of pings, as the server API shows them; times in seconds."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from _speedups import RttFilter

__all__ = ["RttObject", "rtt_of", "rtt_totals"]


class RttObject(msgspec.Struct):
    """One connection's pings.

    Attributes:
        median: Of the last 15 samples, seconds.
        smoothed: As RFC 6298 smooths, outliers damped; seconds.
        variation: Its deviation, seconds.
        samples: Pongs that were measured.
        outliers: Of these, those that were damped.
        rejected: Pongs later than 30 s, which measure a sleep and not a link.
        clock_skew_corrections: Times that no monotonic clock can give, discarded.
    """

    median: float
    smoothed: float
    variation: float
    samples: int
    outliers: int
    rejected: int
    clock_skew_corrections: int


def rtt_of(rtt: RttFilter) -> RttObject:
    """Return one connection's figures."""
    return RttObject(
        median=rtt.median(),
        smoothed=rtt.smoothed(),
        variation=rtt.variation(),
        samples=rtt.accepted,
        outliers=rtt.outliers,
        rejected=rtt.rejected,
        clock_skew_corrections=rtt.clock_skew_corrections,
    )


def rtt_totals(filters: Iterable[RttFilter | None]) -> dict[str, float]:
    """Return the node's figures over its present connections."""
    found = [rtt_of(rtt) for rtt in filters if rtt is not None]
    smoothed = [one.smoothed for one in found if one.samples]
    return {
        "rtt.connections": float(len(smoothed)),
        "rtt.smoothed_mean_seconds": sum(smoothed) / len(smoothed) if smoothed else 0.0,
        "rtt.smoothed_max_seconds": max(smoothed, default=0.0),
        "rtt.samples": float(sum(one.samples for one in found)),
        "rtt.outliers": float(sum(one.outliers for one in found)),
        "rtt.rejected": float(sum(one.rejected for one in found)),
        "rtt.clock_skew_corrections": float(
            sum(one.clock_skew_corrections for one in found)
        ),
    }

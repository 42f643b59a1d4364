"""Filter of ping round-trip times: tells a spike from a slow link.

One heartbeat gives one sample. A phone that wakes up gives a sample ten times its
neighbours, which must not move the reported latency. Each sample is compared with the
median of the last `WINDOW` samples: the Hampel identifier. The filter reports the
median, and the smoothed time and deviation that TCP keeps; an outlier enters these
only at the tolerated limit.

Units: every time is in seconds, from a monotonic clock.

Sources:
    Hampel, "The influence curve and its role in robust estimation",
    JASA 69 (1974), 383-393: the median absolute deviation as a scale.
    Davies and Gather, "The identification of multiple outliers",
    JASA 88 (1993), 782-792: the identifier and its name.
    Paxson et al., RFC 6298, "Computing TCP's Retransmission Timer", section 2: the
    smoothed time and its deviation.

This file is the interpreted fallback and also the source of the compiled
`_speedups.rtt_c`, whose C types are in `rtt_c.pxd`.
"""

from __future__ import annotations

from array import array

__all__ = ["RttFilter"]

WINDOW = 15  # samples kept; a lasting change of route is believed after 8
MIN_SAMPLES = 5  # below this a median says too little, so every sample passes
THRESHOLD = 3.0  # tolerance, in standard deviations of a normal law
MAD_TO_SIGMA = 1.4826  # 1 / (normal quantile of 0.75)
RESOLUTION = 0.001  # s; equal samples would otherwise leave no tolerance
LONGEST = 30.0  # s; a pong later than this measures a sleep and not a link
INFINITY = float("inf")
ALPHA = 0.125  # RFC 6298, 2.3: weight of a sample in the smoothed time
BETA = 0.25  # RFC 6298, 2.3: weight of a sample in the deviation


class RttFilter:
    """Judge the samples of one connection, in the order they arrive.

    Not thread-safe: one connection, one filter, one event loop.

    Attributes:
        accepted: Samples that entered the window, outliers among them; count.
        outliers: Samples that were damped; count.
        rejected: Samples above `LONGEST`, ignored; count.
        clock_skew_corrections: Samples that no monotonic clock can give (negative,
            infinite, not a number), ignored; count.
    """

    __slots__ = (
        "_next",
        "_ranked",
        "_recent",
        "_smoothed",
        "_variation",
        "_window",
        "accepted",
        "clock_skew_corrections",
        "outliers",
        "rejected",
    )

    def __init__(self) -> None:
        self._recent = array("d", bytes(8 * WINDOW))  # s, a ring, by arrival
        self._ranked = array("d", bytes(8 * WINDOW))  # s, the same, ascending
        self._window = 0
        self._next = 0
        self._smoothed = 0.0
        self._variation = 0.0
        self.accepted = 0
        self.outliers = 0
        self.rejected = 0
        self.clock_skew_corrections = 0

    def accept(self, rtt: float) -> bool:
        """Record one sample; return True if it is taken at face value.

        An outlier enters the window as it is, else a link that slows down for good
        would be rejected for ever; the smoothed time takes it at the tolerated
        limit. A sample that is rejected or discarded is counted and leaves no other
        trace.

        Args:
            rtt: Seconds from sending a ping to receiving its pong.

        Raises:
            TypeError: If *rtt* is not a number.
        """
        rtt = rtt + 0.0  # an int beyond any float is an OverflowError on both sides
        if not 0.0 <= rtt < INFINITY:
            self.clock_skew_corrections += 1
            return False
        if rtt > LONGEST:
            self.rejected += 1
            return False
        usual = True
        damped = rtt
        if self._window >= MIN_SAMPLES:
            median = self.median()
            limit = THRESHOLD * MAD_TO_SIGMA * self._deviation(median)
            if limit < RESOLUTION:
                limit = RESOLUTION
            usual = abs(rtt - median) <= limit
            if not usual:
                self.outliers += 1
                damped = median + limit if rtt > median else median - limit
        self._insert(rtt)
        self._smooth(damped)
        self.accepted += 1
        return usual

    def median(self) -> float:
        """Return the window's median in seconds (the lower of two), or 0.0."""
        return self._ranked[(self._window - 1) // 2] if self._window else 0.0

    def smoothed(self) -> float:
        """Return RFC 6298's smoothed round-trip time in seconds, or 0.0."""
        return self._smoothed

    def variation(self) -> float:
        """Return RFC 6298's round-trip time variation in seconds, or 0.0."""
        return self._variation

    def _smooth(self, rtt: float) -> None:
        """Take *rtt* into the smoothed time and its variation."""
        if self.accepted == 0:
            self._smoothed = rtt
            self._variation = rtt / 2.0
        else:
            # In this order: the variation is about the time before this sample.
            error = abs(self._smoothed - rtt)
            self._variation = (1.0 - BETA) * self._variation + BETA * error
            self._smoothed = (1.0 - ALPHA) * self._smoothed + ALPHA * rtt

    def _deviation(self, median: float) -> float:
        """Return the median absolute deviation of the window, in seconds."""
        # Deviations grow on either side of the median, so a merge of the two
        # sides meets them in ascending order and may stop half-way. The first
        # step takes the median itself, hence neither side can run out.
        below = (self._window - 1) // 2
        above = below + 1
        deviation = 0.0
        for _ in range(below + 1):
            deviation = median - self._ranked[below]
            if self._ranked[above] - median < deviation:
                deviation = self._ranked[above] - median
                above += 1
            else:
                below -= 1
        return deviation

    def _insert(self, rtt: float) -> None:
        """Put *rtt* in both orders, in place of the oldest sample once full."""
        place = 0
        if self._window < WINDOW:
            place = self._window
            self._window += 1
        else:
            while self._ranked[place] != self._recent[self._next]:
                place += 1
        self._recent[self._next] = rtt
        self._next = (self._next + 1) % WINDOW
        while place + 1 < self._window and self._ranked[place + 1] < rtt:
            self._ranked[place] = self._ranked[place + 1]
            place += 1
        while place > 0 and self._ranked[place - 1] > rtt:
            self._ranked[place] = self._ranked[place - 1]
            place -= 1
        self._ranked[place] = rtt

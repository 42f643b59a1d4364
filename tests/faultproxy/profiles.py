"""Profiles of networks, and the seeded draws that decide what happens to a segment."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["CLEAR", "PROFILES", "SEGMENT", "Fates", "Profile"]

SEGMENT = 1460
"""Bytes of a TCP segment on Ethernet: what is delayed or lost as one."""

RETRANSMISSION = 0.2
"""Seconds until a lost segment is sent again; doubled when it is lost again."""

LOSSES = 8
"""Times (count) that one segment is lost at most: it arrives after 51 s in the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How a network is, in one direction or in both.

    Attributes:
        delay: Seconds that a segment takes, one way.
        jitter: Seconds that it may take less or more, evenly.
        loss: Probability that a segment is lost, each time that it is sent. TCP sends
            it again, so all that is seen is a stall of it and of what comes after it.
        rate: Bytes per second of each connection; None for no limit.
        cut_every: Seconds that a connection lives on average; None for no end.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    rate: float | None = None
    cut_every: float | None = None

    def __post_init__(self) -> None:
        assert 0.0 <= self.jitter <= self.delay, "a segment cannot arrive before"
        assert 0.0 <= self.loss < 1.0, "nothing would arrive"
        assert self.rate is None or self.rate > 0
        assert self.cut_every is None or self.cut_every > 0


CLEAR = Profile()
"""The loopback as it is."""

PROFILES = {
    "clear": CLEAR,
    "stable": Profile(delay=0.001),
    "unstable": Profile(delay=0.050, jitter=0.020, loss=0.05),
    "poor": Profile(delay=0.200, jitter=0.100, loss=0.10, cut_every=10.0),
    "terrible": Profile(delay=0.500, jitter=0.300, loss=0.20, cut_every=10.0),
}


class Fates:
    """What happens to the segments of one direction of one connection, in order.

    The n-th segment's fate depends on the seed, the connection's number, the direction
    and n alone, not on what other connections do.
    """

    def __init__(self, seed: int, link: int, direction: str) -> None:
        self._rng = random.Random(f"{seed} {link} {direction}")
        self._sizes = random.Random(f"{seed} {link} {direction} sizes")

    def size(self, most: int) -> int:
        """Return how many bytes to read: odd, so that frames are split anywhere."""
        return self._sizes.randint(1, most)

    def latency(self, profile: Profile) -> float:
        """Return the seconds that the next segment takes."""
        lost = 0
        while lost < LOSSES and self._rng.random() < profile.loss:
            lost += 1
        stall = RETRANSMISSION * (2**lost - 1)
        jitter = self._rng.uniform(-profile.jitter, profile.jitter)
        return profile.delay + jitter + stall

    def life(self, profile: Profile) -> float | None:
        """Return the seconds after which the connection is cut, if it is."""
        if profile.cut_every is None:
            return None
        return self._rng.expovariate(1 / profile.cut_every)

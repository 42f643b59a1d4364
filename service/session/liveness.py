"""When a connection is pinged, must have answered, and expires: times, no actions."""

from __future__ import annotations

import enum
from random import Random

from _speedups import RttFilter
from service.settings import ClientSettings

__all__ = ["NEVER", "Due", "Liveness"]

NEVER = float("inf")


class Due(enum.Enum):
    """What a tick finds to be done."""

    NOTHING = enum.auto()
    PING = enum.auto()
    NO_PONG = enum.auto()
    EXPIRED = enum.auto()


class Liveness:
    """The clocks of one connection that has connected; all times as `Clock.now`.

    Attributes:
        rtt: The round-trip times of its pings; None before the first pong.
    """

    __slots__ = (
        "_expires_at",
        "_ping_at",
        "_pinged_at",
        "_pong_by",
        "_settings",
        "_unanswered",
        "rtt",
    )

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._ping_at = NEVER
        self._pong_by = NEVER
        self._pinged_at = NEVER  # the last time
        self._unanswered = 0  # pings; more than one only while we do not read
        self._expires_at = NEVER
        self.rtt: RttFilter | None = None

    @property
    def next(self) -> float:
        """When the next tick is due."""
        return min(self._ping_at, self._pong_by, self._expires_at)

    def start(self, now: float, random: Random) -> None:
        """Begin to ping."""
        # A random first ping keeps ten thousand clients that reconnected together
        # from being pinged together.
        interval = self._settings.ping_interval
        self._ping_at = now + interval * (0.5 + 0.5 * random.random())

    def expire(self, at: float | None) -> None:
        """Expire at *at*; None: never."""
        self._expires_at = NEVER if at is None else at

    def pong(self, now: float) -> bool:
        """Take a pong; False when nobody asked for it."""
        if not self._unanswered:
            return False
        self._pong_by = NEVER
        if self._unanswered == 1:  # else nobody knows which ping this answers
            if self.rtt is None:
                self.rtt = RttFilter()
            self.rtt.accept(now - self._pinged_at)
        self._unanswered -= 1
        return True

    def tick(self, now: float, *, reading: bool) -> Due:
        """Return what is due at *now*; call until it is nothing.

        Args:
            now: The time.
            reading: False while the connection is not read: its pong may be waiting
                before our door, so its absence is not held against it.
        """
        if now >= self._expires_at:
            return Due.EXPIRED
        if now >= self._pong_by:
            if reading:
                return Due.NO_PONG
            self._pong_by = now + self._settings.pong_timeout
        if now >= self._ping_at:
            self._ping_at = now + self._settings.ping_interval
            self.pinged(now)
            return Due.PING
        return Due.NOTHING

    def pinged(self, now: float) -> None:
        """Take note of a ping that is written now."""
        self._pinged_at = now
        self._unanswered += 1
        if self._pong_by == NEVER:
            self._pong_by = now + self._settings.pong_timeout

"""Keepalive of one connection: pings, pongs, levels of liveness, and its end in time.

`liveness_stats` draws the levels, and counts for the process. Anything that the peer
sends is a sign of life. A write that succeeds is not one, since the kernel takes it for
a peer that is long gone. While we do not read, or do not run at all, a pong may wait in
the socket: that silence is our own and does not count against the peer.

Pongs have no ids, but come in the order of their pings. A ping without a pong is given
up after twice the timeout; its pong may still come and is then ignored. A pong for no
ping at all is a protocol error.
"""

from __future__ import annotations

import enum
from random import Random

from _speedups import RttFilter
from service.core.errors import CONNECTION_EXPIRED, FORCE_RECONNECT, NO_PONG, Close
from service.core.model import ClientId
from service.session.expiry import NEVER
from service.session.liveness_stats import Level, LivenessStats
from service.settings import ClientSettings

__all__ = ["Due", "Keepalive"]

SUSPECT = 0.8
"""Part of the timeout after which a silent connection is suspect."""

AGE_SPREAD = 0.05
"""Part of the maximum age by which connections are closed earlier, at random: ten
thousand that came together do not go together."""

LATE = 1 / 16
"""Part of the interval by which a ping may be late without the next being later."""

MAX_PINGS = 64
"""Pings without a pong (count); with one more, the oldest is given up."""


class Due(enum.Enum):
    """The outcome of a tick."""

    NOTHING = enum.auto()
    PING = enum.auto()
    NO_PONG = enum.auto()
    EXPIRED = enum.auto()
    AGED = enum.auto()

    @property
    def close(self) -> Close | None:
        """The close of the connection, None if it goes on."""
        return _CLOSES.get(self)


_CLOSES = {
    Due.NO_PONG: NO_PONG,
    Due.EXPIRED: CONNECTION_EXPIRED,
    Due.AGED: FORCE_RECONNECT,
}


class Keepalive:
    """The timers of one connection that has connected; all times as `Clock.now`.

    Attributes:
        rtt: The round-trip times of its pings; None before the first pong.
        level: The level of its liveness.
        heard: The time of its last sign of life.
    """

    __slots__ = (
        "_aged_at",
        "_asked_at",
        "_client",
        "_expires_at",
        "_given_up",
        "_ping_at",
        "_pings",
        "_pong_by",
        "_settings",
        "_stats",
        "heard",
        "level",
        "rtt",
    )

    def __init__(
        self, settings: ClientSettings, stats: LivenessStats, client: ClientId
    ) -> None:
        self._settings = settings
        self._stats = stats
        self._client = client
        self._ping_at = NEVER
        self._pong_by = NEVER
        self._asked_at = NEVER  # the time of the ping that `_pong_by` is for
        self._expires_at = NEVER
        self._aged_at = NEVER
        self._pings: list[float] = []  # the times of pings without a pong
        self._given_up = 0  # pings given up, whose pongs may still come
        self.rtt: RttFilter | None = None
        self.level = Level.HEALTHY
        self.heard = NEVER

    @property
    def next(self) -> float:
        """The time of the next tick."""
        silent = self._dead_at if self.level is Level.SUSPECT else self._suspect_at
        return min(
            self._ping_at, self._pong_by, silent, self._expires_at, self._aged_at
        )

    @property
    def _suspect_at(self) -> float:
        return self.heard + SUSPECT * self._stats.timeout

    @property
    def _dead_at(self) -> float:
        return self.heard + self._stats.timeout

    @property
    def pending(self) -> int:
        """Pings that wait for their pong (count)."""
        return len(self._pings)

    def start(self, now: float, rng: Random) -> None:
        """Begin to ping."""
        # A random first ping keeps ten thousand clients that reconnected together
        # from being pinged together.
        interval = self._settings.ping_interval
        self._ping_at = now + interval * (0.5 + 0.5 * rng.random())
        self._aged_at = now + self._settings.max_age * (1.0 - AGE_SPREAD * rng.random())
        self.heard = now

    def restore(
        self, connected_at: float, heard: float, now: float, rng: Random
    ) -> None:
        """Go on at *now* as a connection that pings since *connected_at*."""
        self.start(connected_at, rng)
        self.heard = heard
        late = now - self._ping_at
        if late >= 0:
            interval = self._settings.ping_interval
            self._ping_at += interval * (late // interval + 1)

    @property
    def expires_at(self) -> float:
        """When the connection expires; `NEVER` if it does not."""
        return self._expires_at

    def end(self) -> None:
        """Give up every ping: the connection is over. Safe to call again."""
        self._stats.orphaned += len(self._pings)
        self._pings.clear()
        self._given_up = 0

    def expire(self, at: float) -> None:
        """Expire at *at*; `NEVER` for never."""
        self._expires_at = at

    def hear(self, now: float) -> None:
        """Take a sign of life."""
        self.heard = now
        if self.level is not Level.HEALTHY:
            self._step(Level.HEALTHY)

    def pong(self, now: float) -> bool:
        """Take a pong; False when there was no ping for it."""
        pings, stats = self._pings, self._stats
        if self._given_up:
            self._given_up -= 1
            stats.late += 1
            return True
        if not pings:
            return False
        sent = pings.pop(0)
        stats.answered += 1
        self._pong_by = NEVER
        if not pings:  # else several come together, since we did not read for a while
            self._sample(now - sent)
        return True

    def tick(self, now: float, *, reading: bool) -> Due:
        """Return what is due at *now*, one thing a call; the next is due at `next`.

        Args:
            now: The time.
            reading: False while the connection is not read: its pong may wait in the
                socket, so that its absence does not count against the peer.
        """
        if now >= self._expires_at:
            return Due.EXPIRED
        if now >= self._aged_at:
            return Due.AGED
        patience = self._settings.pong_timeout
        stopped = now - self.next > patience  # this process, for that long
        if stopped or not reading:
            self.heard = max(self.heard, now - patience if reading else now)
            if now >= self._pong_by:
                self._wait(now)
        if now >= self._dead_at:
            self._stats.record_death(self._client, self.heard)
            self._step(Level.DEAD)
            return Due.NO_PONG
        if now >= self._suspect_at and self.level is not Level.SUSPECT:
            self._step(Level.SUSPECT)
        if now >= self._pong_by:
            self._pong_by = NEVER
            if self.level is Level.HEALTHY and self.heard <= self._asked_at:
                self._step(Level.DEGRADED)
                self.pinged(now)
                return Due.PING
        if now >= self._ping_at:
            interval, late = self._settings.ping_interval, now - self._ping_at
            # Timers ring a little late, and the times are not to drift by that.
            self._ping_at = now + interval - (late if late <= LATE * interval else 0.0)
            self.pinged(now)
            return Due.PING
        return Due.NOTHING

    def pinged(self, now: float) -> None:
        """Note a ping that is written now."""
        pings = self._pings
        oldest = now - 2 * self._stats.timeout
        while pings and (pings[0] <= oldest or len(pings) >= MAX_PINGS):
            del pings[0]
            self._given_up += 1
            self._stats.orphaned += 1
        pings.append(now)
        self._stats.sent += 1
        if self._pong_by == NEVER and self.level is Level.HEALTHY:
            self._wait(now)

    def _wait(self, now: float) -> None:
        self._asked_at = now
        self._pong_by = now + self._settings.pong_timeout

    def _step(self, level: Level) -> None:
        before, self.level = self.level, level
        self._stats.step(self._client, before, level)

    def _sample(self, seconds: float) -> None:
        rtt = self.rtt
        if rtt is None:
            rtt = self.rtt = RttFilter()
        stats, accepted = self._stats, rtt.accepted
        rejected, skewed = rtt.rejected, rtt.clock_skew_corrections
        rtt.accept(seconds)
        stats.rejected_samples += rtt.rejected - rejected
        stats.clock_skew_corrections += rtt.clock_skew_corrections - skewed
        if rtt.accepted > accepted:
            for observe in stats.rtt_listeners:
                observe(seconds)

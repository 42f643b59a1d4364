"""Expiry arithmetic: Unix times to the ends of connections and subscriptions.

An ``expire_at`` in the past counts as now, so that what is already expired ends after
the delay, and a client that asks again at once does not do so in a loop without pause.
"""

from __future__ import annotations

from service.settings import ClientSettings

__all__ = ["NEVER", "Expiry"]

NEVER = float("inf")

_MAX_TTL = 2**31 - 1  # seconds; the SDKs' timers take no more


class Expiry:
    """The arithmetic of one session.

    *expire_at* is always Unix seconds, 0 for never. Each method raises `ValueError` or
    `TypeError` for anything else.

    Args:
        settings: The delays.
        ahead: Seconds that Unix time is ahead of the session's clock.
    """

    __slots__ = ("_ahead", "_settings")

    def __init__(self, settings: ClientSettings, ahead: float) -> None:
        self._settings = settings
        self._ahead = ahead

    def ttl(self, expire_at: float, now: float) -> int | None:
        """Return whole seconds, 1 or more, until *expire_at*; None for never."""
        if not 0 <= expire_at < NEVER:
            raise ValueError("expire_at must be Unix seconds, or 0")
        if not expire_at:
            return None
        return max(1, min(_MAX_TTL, int(expire_at - self._ahead - now)))

    def close_at(self, expire_at: float, now: float) -> float:
        """Return when a connection that expires is closed, as `Clock.now`."""
        return self._end(expire_at, now, self._settings.expired_close_delay)

    def unsubscribe_at(self, expire_at: float, now: float) -> float:
        """Return when a subscription that expires is ended, as `Clock.now`."""
        return self._end(expire_at, now, self._settings.expired_sub_close_delay)

    def unix(self, at: float) -> int:
        """Return a time of the session's clock in Unix milliseconds; 0 for `NEVER`."""
        return 0 if at == NEVER else round((at + self._ahead) * 1000.0)

    def time(self, unix: int) -> float:
        """Return Unix milliseconds as a time of the session's clock; `NEVER` for 0."""
        return unix / 1000.0 - self._ahead if unix else NEVER

    def _end(self, expire_at: float, now: float, delay: float) -> float:
        if not 0 <= expire_at < NEVER:
            raise ValueError("expire_at must be Unix seconds, or 0")
        if not expire_at:
            return NEVER
        return max(now, expire_at - self._ahead) + delay

"""When connections and subscriptions end: from Unix times to the session's clock.

An end that is in the past counts as now: whoever says so is asked again after the
delay, and not at once, in a circle.
"""

from __future__ import annotations

from service.settings import ClientSettings

__all__ = ["NEVER", "Expiry"]

NEVER = float("inf")

_MOST = 2**31 - 1  # seconds; the SDKs' timers take no more


class Expiry:
    """The arithmetic of one session.

    Args:
        settings: The delays.
        ahead: Seconds that Unix time is ahead of the session's clock.
    """

    __slots__ = ("_ahead", "_settings")

    def __init__(self, settings: ClientSettings, ahead: float) -> None:
        self._settings = settings
        self._ahead = ahead

    def ttl(self, expire_at: float, now: float) -> int | None:
        """Return whole seconds, 1 or more, until *expire_at*; None for never (0).

        Raises:
            ValueError: It is no time.
            TypeError: It is no number.
        """
        if not 0 <= expire_at < NEVER:
            raise ValueError("expire_at must be Unix seconds, or 0")
        if not expire_at:
            return None
        return max(1, min(_MOST, int(expire_at - self._ahead - now)))

    def close_at(self, expire_at: float, now: float) -> float:
        """Return when a connection that expires is closed, as `Clock.now`.

        Raises:
            ValueError: It is no time.
            TypeError: It is no number.
        """
        return self._end(expire_at, now, self._settings.expired_close_delay)

    def unsubscribe_at(self, expire_at: float, now: float) -> float:
        """Return when a subscription that expires is ended, as `close_at`.

        Raises:
            ValueError: It is no time.
            TypeError: It is no number.
        """
        return self._end(expire_at, now, self._settings.expired_sub_close_delay)

    def _end(self, expire_at: float, now: float, delay: float) -> float:
        if not 0 <= expire_at < NEVER:
            raise ValueError("expire_at must be Unix seconds, or 0")
        if not expire_at:
            return NEVER
        return max(now, expire_at - self._ahead) + delay

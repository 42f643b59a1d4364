"""Credentials that were refused: not looked at again for a while, in one process.

Nothing is remembered of an address before it has failed often. From then on the
credentials that fail there are: presented again, they are refused, and neither keys
nor a hook are asked. All others are looked at: valid ones get in from everywhere.
"""

from __future__ import annotations

from service.core.ports import Clock
from service.core.rate_limits import Failures
from service.core.refusal_log import RefusalLog
from service.settings import LimitSettings

__all__ = ["RefusedCredentials"]

_KEYS = 65536  # addresses, and credentials, that are kept; some 200 bytes each


class RefusedCredentials:
    """The credentials that were refused of late.

    Args:
        limits: How often an address may fail, and for how long that counts.
        clock: Of those times.
        log: Logs, and counts, what this refuses.
    """

    def __init__(self, limits: LimitSettings, clock: Clock, log: RefusalLog) -> None:
        self._clock = clock
        self._log = log
        self._failures: Failures[str] | None = None
        self._refused: Failures[tuple[str, bytes]] | None = None
        if limits.failures_per_address:
            window, block = limits.failure_window, limits.failure_block
            self._failures = Failures(limits.failures_per_address, window, block, _KEYS)
            self._refused = Failures(1, window, block, _KEYS)

    def add(self, address: str, credentials: bytes) -> None:
        """Count credentials from *address* that were refused.

        Args:
            address: The key of the client's address.
            credentials: Their digest; empty when they may be those of others too.
        """
        if self._failures is None or self._refused is None:
            return
        now = self._clock.now()
        if self._failures.failed(address, now):
            self._log.add("failures", address, now)
        if credentials and self._failures.blocked(address, now):
            self._refused.failed((address, credentials), now)

    def blocked(self, address: str, credentials: bytes) -> bool:
        """Tell whether *credentials* are not to be looked at: they failed before."""
        if self._refused is None:
            return False
        now = self._clock.now()
        blocked = self._refused.blocked((address, credentials), now) > 0
        if blocked:
            self._log.add("blocked", address, now)
        return blocked

"""How many commands a connection may send: its own rate, its user's, its address's.

Asked once for each portion of commands, not for each command. A command counts against
each limit that it comes to, in the order above, also when a later one refuses it. What
is refused counts too: a connection that goes on at twice the rate is closed.
"""

from __future__ import annotations

from service.core.model import UserId
from service.core.rate_limits import Bucket, Buckets, Rate, rate_of
from service.settings import LimitSettings

__all__ = ["CommandQuota", "CommandLimits"]

_KEYS = 65536  # users, and addresses, whose rates are kept; some 200 bytes each


class CommandLimits:
    """What the connections of one process share.

    Attributes:
        refused: Commands answered with 111 so far.
        dropped: Commands without an answer, dropped so far.
    """

    def __init__(self, limits: LimitSettings) -> None:
        own = rate_of(limits.commands_per_connection, limits.burst)
        user = rate_of(limits.commands_per_user, limits.burst)
        address = rate_of(limits.commands_per_address, limits.burst)
        self.own = own
        self.users = Buckets[UserId](user, _KEYS) if user else None
        self.addresses = Buckets[str](address, _KEYS) if address else None
        self.excess = own or user or address
        self.refused = 0
        self.dropped = 0

    def allowance(self, address: str, now: float) -> CommandQuota | None:
        """Return the allowance of a new connection; None when nothing is limited."""
        if self.excess is None:
            return None
        return CommandQuota(self, self.excess, address, now)


class CommandQuota:
    """The commands that one connection may send."""

    __slots__ = ("_address", "_excess", "_limits", "_own", "_refused", "user")

    def __init__(
        self, limits: CommandLimits, excess: Rate, address: str, now: float
    ) -> None:
        self._limits = limits
        self._address = address
        self._own = Bucket(now)
        self._excess = excess
        self._refused = Bucket(now)
        self.user = UserId("")

    def take(self, wanted: int, now: float) -> int:
        """Return how many of *wanted* commands are let through now."""
        limits = self._limits
        if limits.own is not None:
            wanted = self._own.take(limits.own, now, wanted)
        # Those without a name are not one user.
        if limits.users is not None and self.user:
            wanted = limits.users.take(self.user, now, wanted)
        if limits.addresses is not None:
            wanted = limits.addresses.take(self._address, now, wanted)
        return wanted

    def refuse(self, now: float, *, answered: bool) -> bool:
        """Count a command that was refused; False when it was one too many."""
        if answered:
            self._limits.refused += 1
        else:
            self._limits.dropped += 1
        return self._refused.take(self._excess, now) == 1

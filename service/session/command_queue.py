"""Command queue of one connection: fairness between connections, and rate limits.

Commands come a frame at a time, and a frame has room for thousands. Between two turns
of the event loop at most `TURN_BUDGET` units of them are handled, so that a command of
another connection waits for one such portion of each connection, and not for a frame of
each. Units are counted, not measured: a command is one, and a command that goes through
many items, such as a presence of many clients, is several.

A command over its rate limit is refused with error 111, after which SDKs try again; one
without an id is dropped. An unsubscribe is handled all the same: it costs little, and
an error would make the SDKs reconnect. A connection that sends twice its rate is closed
with 3013, and the SDKs come back after their backoff.

Three limits apply, in this order: the connection's, its user's, and its address's. They
are asked once for a portion of commands, not for each command. A command counts against
each limit that it reaches, also when a later one refuses it, and a refused command
counts too.

A publish whose publication is kept may create a channel: it costs its user, or without
one its address, a token of another rate, unless the process knows the channel.
"""

from __future__ import annotations

from collections import deque

from service.core.errors import (
    TOO_MANY_REQUESTS,
    TOO_MANY_REQUESTS_CLOSE,
    CloseError,
    ReplyError,
)
from service.core.model import Channel, UserId
from service.core.rate_limits import Bucket, Buckets, Rate, rate_of
from service.protocol.commands import Command
from service.session.port import Port
from service.settings import LimitSettings

__all__ = ["CommandLimits", "CommandQueue", "CommandQuota"]

TURN_BUDGET = 32
"""Units handled between two turns of the event loop: some 0.1 ms."""

_KEYS = 65536  # users, and addresses, whose rates are kept; some 200 bytes each


class CommandLimits:
    """The rate limits of commands, shared by the connections of one process.

    Attributes:
        refused: Commands answered with error 111 so far (count).
        dropped: Commands without an id that were dropped so far (count).
    """

    def __init__(self, limits: LimitSettings) -> None:
        own = rate_of(limits.commands_per_connection, limits.burst)
        user = rate_of(limits.commands_per_user, limits.burst)
        address = rate_of(limits.commands_per_address, limits.burst)
        self.own = own
        self.users = Buckets[UserId](user, _KEYS) if user else None
        self.addresses = Buckets[str](address, _KEYS) if address else None
        channels = rate_of(limits.channels_per_user, limits.burst)
        # Users, and with a NUL before them the addresses of those without one.
        self.channels = Buckets[str](channels, _KEYS) if channels else None
        self.refusals = own or user or address or channels
        self.refused = 0
        self.dropped = 0

    def quota(self, address: str, now: float) -> CommandQuota | None:
        """Return the quota of a new connection; None when nothing is limited."""
        if self.refusals is None:
            return None
        return CommandQuota(self, self.refusals, address, now)


class CommandQuota:
    """The commands that one connection may send.

    Attributes:
        user: The connection's user; "" until it has connected, and for anonymous ones,
            who are not limited together.
    """

    __slots__ = ("_address", "_limits", "_own", "_refusals", "_refused", "user")

    def __init__(
        self, limits: CommandLimits, refusals: Rate, address: str, now: float
    ) -> None:
        self._limits = limits
        self._address = address
        self._own = Bucket(now)
        self._refusals = refusals  # more refused commands than this close
        self._refused = Bucket(now)
        self.user = UserId("")

    def take(self, wanted: int, now: float) -> int:
        """Return how many of *wanted* commands may be handled now."""
        limits = self._limits
        if limits.own is not None:
            wanted = self._own.take(limits.own, now, wanted)
        if limits.users is not None and self.user:
            wanted = limits.users.take(self.user, now, wanted)
        if limits.addresses is not None:
            wanted = limits.addresses.take(self._address, now, wanted)
        return wanted

    def may_publish(self, port: Port, channel: Channel, now: float) -> bool:
        """Count a channel unless it is known; False when it is one too many."""
        channels = self._limits.channels
        if channels is None or port.knows(channel):
            return True
        return channels.take(self.user or f"\0{self._address}", now) == 1

    def refuse(self, now: float, *, answered: bool) -> bool:
        """Count a refused command; False when it was one too many."""
        if answered:
            self._limits.refused += 1
        else:
            self._limits.dropped += 1
        return self._refused.take(self._refusals, now) == 1


class CommandQueue:
    """The commands of one connection that wait or are under way.

    Args:
        in_flight: Commands under way at most (count).
        quota: The commands that the connection may send; None for any number.

    Attributes:
        backlog: Commands not yet handled, the next one last.
        under_way: Commands that wait for an outcome (count).
        blocked: A command under way holds up all that follow.
        in_flight: As above.
    """

    __slots__ = (
        "_granted",
        "_now",
        "_quota",
        "_spent",
        "backlog",
        "blocked",
        "in_flight",
        "under_way",
    )

    def __init__(self, in_flight: int, quota: CommandQuota | None) -> None:
        self.backlog: list[Command] = []  # most of the time empty, so no deque
        self.under_way = 0
        self.blocked = False
        self.in_flight = in_flight
        self._quota = quota
        self._now = 0.0  # when the last command was taken
        self._granted = 0  # commands of the backlog that the quota has passed
        self._spent = 0  # units, in this turn of the loop

    def add(self, commands: list[Command]) -> None:
        """Put commands behind all that wait."""
        self.backlog[:0] = commands[::-1]

    def may_take(self, port: Port) -> bool:
        """Tell whether the next command can be handled now, and count it if so.

        If not, it is to be handled after an outcome, when there is room to write, or in
        the next turn of the event loop, which *port* is then asked for.
        """
        if self.blocked or self.under_way >= self.in_flight:
            return False
        if self._spent >= TURN_BUDGET:
            port.later()
            return False
        if not port.has_room:
            return False  # replies are small, but histories and recoveries are not
        self._spent += 1
        return True

    def allows(self, command: int, method: str, now: float) -> bool:
        """Tell whether a command that was taken is handled; if not, it is dropped.

        Args:
            command: The command's id, 0 for none.
            method: "" for a pong, which is not limited.
            now: The time.

        Raises:
            ReplyError: 111; the command is over the rate.
            CloseError: 3013; the connection is at twice its rate.
        """
        quota = self._quota
        if quota is None or not method:
            return True
        self._now = now
        if not self._granted:
            self._granted = quota.take(min(1 + len(self.backlog), TURN_BUDGET), now)
        if self._granted:
            self._granted -= 1
            return True
        if not quota.refuse(now, answered=command > 0):
            raise CloseError(TOO_MANY_REQUESTS_CLOSE)
        if method == "unsubscribe":
            return True
        if command:
            raise ReplyError(TOO_MANY_REQUESTS)
        return False

    def create_channel(self, port: Port, channel: Channel) -> None:
        """Count the channel that a publish creates; one that is known costs nothing.

        Raises:
            ReplyError: 111; the user has created too many.
        """
        quota = self._quota
        if quota is not None and not quota.may_publish(port, channel, self._now):
            raise ReplyError(TOO_MANY_REQUESTS)

    def turn(self) -> None:
        """Begin a new portion: the event loop has turned."""
        self._spent = 0

    def charge(self, items: int) -> None:
        """Count a command that goes through *items* items; 32 are a unit."""
        self._spent += items >> 5

    def put_back(self, waiting: deque[Command]) -> None:
        """Put commands that waited for another before all the rest."""
        self.under_way -= len(waiting)
        self._granted += len(waiting)
        self.backlog.extend(reversed(waiting))

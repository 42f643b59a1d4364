"""Port of the connections of users: what the server does to them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from _speedups import RttFilter
from service.core.errors import Close, Unsubscribe
from service.core.model import (
    NO_OVERRIDE,
    Channel,
    ClientId,
    Override,
    Position,
    RawJson,
    UserId,
)

__all__ = ["ConnectionStatus", "People", "Rtt", "ServerSubscribe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rtt:
    """The round-trip times of one connection's pings, in seconds.

    Attributes:
        median: Median of the last 15 samples.
        smoothed: Smoothed as in RFC 6298, with outliers damped.
        variation: The deviation from that.
        samples: Pongs that were measured (count).
        outliers: Samples that were damped (count).
        rejected: Pongs later than 30 s (count).
        clock_skew_corrections: Discarded times that no monotonic clock can give
            (count).
    """

    median: float
    smoothed: float
    variation: float
    samples: int
    outliers: int
    rejected: int
    clock_skew_corrections: int

    @classmethod
    def of(cls, measured: RttFilter) -> Rtt:
        """Return the figures of a connection's filter."""
        return cls(
            median=measured.median(),
            smoothed=measured.smoothed(),
            variation=measured.variation(),
            samples=measured.accepted,
            outliers=measured.outliers,
            rejected=measured.rejected,
            clock_skew_corrections=measured.clock_skew_corrections,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionStatus:
    """One connection of a user, as the server API shows it.

    Attributes:
        client: Its id.
        protocol: The form of the wire protocol: ``json`` or ``protobuf``.
        channels: The channels that it is subscribed to, or about to be.
        level: Of its liveness.
        pending_pings: Pings that wait for their pong (count).
        silent: Seconds since it last sent something.
        idle: Seconds since it last sent something or took what was written to it.
        queued_bytes: Bytes that wait for its socket.
        messages_sent: Messages whose write to its socket has ended (count).
        in_flight: One of its commands has no outcome yet.
        rtt: The round-trip times of its pings; None before the first pong.
    """

    client: ClientId
    protocol: str
    channels: Sequence[Channel]
    level: str
    pending_pings: int
    silent: float
    idle: float
    queued_bytes: int
    messages_sent: int
    in_flight: bool
    rtt: Rtt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSubscribe:
    """A subscribe on the server's side of a user's connections.

    Attributes:
        user: The user.
        channel: The channel.
        client: One connection; "" for all.
        since: Recover from here; None starts at the top.
        expire_at: When the subscription ends, in Unix seconds; 0 for never.
        info: Shown to the others in the channel.
        data: Handed to the client.
        override: Options that differ from those of the channel's namespace.
    """

    user: UserId
    channel: Channel
    client: str = ""
    since: Position | None = None
    expire_at: float = 0.0
    info: RawJson | None = None
    data: RawJson | None = None
    override: Override = NO_OVERRIDE


class People(Protocol):
    """The live connections of users, and what the server does to them.

    *user* "" stands for connections without a user. With a *client*, only that
    connection of the user is meant. Every method raises `StoreError` when it is not
    known whether it was done; it may be repeated.
    """

    async def connections(self, user: UserId) -> list[ConnectionStatus]:
        """Return a user's connections."""

    async def disconnect(
        self,
        user: UserId,
        close: Close,
        *,
        client: str = "",
        stay: Collection[str] = (),
        confirmed: bool = False,
    ) -> int:
        """Close a user's connections but those in *stay*; return how many there were.

        Connections that are about to be the user's are closed too, unless one is named.
        When it returns, connections of other processes may still be open, and are not
        counted, unless that is asked to be *confirmed*.
        """

    async def expire(self, user: UserId, *, client: str = "") -> None:
        """Close a user's connections because they have expired."""

    async def refresh(
        self, user: UserId, expire_at: float, info: RawJson | None, *, client: str = ""
    ) -> None:
        """Let them expire at the Unix time *expire_at*, 0 for never.

        With an *info* that is not None, show it to others from now on.
        """

    async def subscribe(self, request: ServerSubscribe) -> None:
        """Subscribe them, and push that to them.

        Raises:
            ReplyError: A connection could not be subscribed.
        """

    async def unsubscribe(
        self, user: UserId, channel: Channel, code: Unsubscribe, *, client: str = ""
    ) -> None:
        """Take them out of *channel*, and push that to them."""

    async def revoke(self, user: UserId, token_id: str, before: float) -> None:
        """Close the connections whose token was revoked.

        Args:
            user: With "" as *token_id*: the user whose tokens are.
            token_id: The ``jti`` of the token.
            before: Unix seconds; a user's tokens issued earlier are revoked.
        """

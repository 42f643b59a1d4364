"""``/api/connections``, ``disconnect`` and ``refresh``: a user's live connections."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import msgspec
from msgspec import UNSET, Raw, UnsetType

from _speedups import RttFilter
from service.connections.registry import Connection, Record
from service.core.errors import (
    BAD_REQUEST,
    CONNECTION_EXPIRED,
    FORCE_DISCONNECT,
    Close,
    ReplyError,
)
from service.core.json_fields import optional_payload_of
from service.core.model import UserId
from service.http.api.context import ApiContext, Empty, Integer, User
from service.http.validation import close_of

__all__ = [
    "ConnectionsRequest",
    "ConnectionsResult",
    "DisconnectRequest",
    "RefreshRequest",
    "connections",
    "connections_of",
    "disconnect",
    "disconnect_all",
    "refresh",
    "rtt_of",
]


class ConnectionsRequest(msgspec.Struct, kw_only=True):
    """Read a user's live connections; *user* "" stands for the anonymous ones."""

    user: User


class StateObject(msgspec.Struct):
    """The channels of a connection, as keys."""

    channels: dict[str, Empty]


class RttObject(msgspec.Struct):
    """The round-trip times of one connection's pings.

    Attributes:
        median: Median of the last 15 samples, in seconds.
        smoothed: Smoothed as in RFC 6298, with outliers damped; in seconds.
        variation: The deviation from that, in seconds.
        samples: Pongs that were measured (count).
        outliers: Samples that were damped (count).
        rejected: Pongs later than 30 s: they measure a sleep, not a link (count).
        clock_skew_corrections: Discarded times that a monotonic clock cannot give
            (count).
    """

    median: float
    smoothed: float
    variation: float
    samples: int
    outliers: int
    rejected: int
    clock_skew_corrections: int


class StatusObject(msgspec.Struct):
    """How one connection is at this moment.

    Attributes:
        level: Of its liveness: ``healthy``; ``degraded``, a pong is missing;
            ``suspect``, 80 % of the heartbeat's timeout have passed in silence.
        pending_pings: Pings that wait for their pong (count).
        silent: Seconds since it last sent something.
        idle: Seconds since it last sent something or took what was written to it.
        queued_bytes: Bytes that wait for its socket.
        messages_sent: Messages handed to its socket (count).
        in_flight: Whether one of its commands has no outcome yet.
    """

    level: str
    pending_pings: int
    silent: float
    idle: float
    queued_bytes: int
    messages_sent: int
    in_flight: bool


class ConnectionObject(msgspec.Struct, omit_defaults=True):
    """One connection; *rtt* is present after its first pong."""

    transport: str
    protocol: str
    user: str
    state: StateObject
    status: StatusObject
    rtt: RttObject | UnsetType = UNSET


class ConnectionsResult(msgspec.Struct):
    """A user's connections by client id."""

    connections: dict[str, ConnectionObject]


class DisconnectObject(msgspec.Struct):
    """A close code from 3000 to 4999, and a reason in plain words."""

    code: Integer = 0
    reason: str = ""


class DisconnectRequest(msgspec.Struct, kw_only=True):
    """Close a user's live connections; *user* "" stands for the anonymous ones.

    Attributes:
        client: Only this connection.
        session: Only this session; there are no sessions, so none is found.
        whitelist: Client ids of connections that stay.
        disconnect: By default 3503, after which clients do not reconnect.
    """

    user: User
    client: str | None = None
    session: str | None = None
    whitelist: list[str] | None = None
    disconnect: DisconnectObject | None = None


class RefreshRequest(msgspec.Struct, kw_only=True):
    """Set when a user's live connections expire; *user* "": the anonymous ones.

    Attributes:
        client: Only this connection.
        session: Only this session; there are no sessions, so none is found.
        expired: Close them with 3005 now.
        expire_at: Unix seconds; 0 or absent for never.
        info: Information for others, from now on.
    """

    user: User
    client: str | None = None
    session: str | None = None
    expired: bool | None = None
    expire_at: Integer | None = None
    info: Raw | UnsetType = UNSET


class _Target(Protocol):
    user: str
    client: str | None
    session: str | None


def connections_of(context: ApiContext, target: _Target) -> list[Connection]:
    """Return the live connections that a request names."""
    if target.session:
        return []  # no connection has a session id
    return context.runtime.connections.of_user(UserId(target.user), target.client or "")


async def connections(context: ApiContext, request: ConnectionsRequest) -> str:
    """Return a user's live connections."""
    found: dict[str, ConnectionObject] = {}
    registry, now = context.runtime.connections, context.runtime.clock.now()
    for connection in registry.of_user(UserId(request.user)):
        record = registry.find(connection.identity.client)
        assert record is not None  # it has a slot
        rtt = connection.liveness.rtt
        found[connection.identity.client] = ConnectionObject(
            transport="websocket",
            protocol=connection.protocol,
            user=request.user,
            state=StateObject({name: Empty() for name in connection.channels}),
            status=_status_of(record, now),
            rtt=UNSET if rtt is None else rtt_of(rtt),
        )
    return msgspec.json.encode(ConnectionsResult(found)).decode()


def _status_of(record: Record, now: float) -> StatusObject:
    connection = record.connection
    return StatusObject(
        level=connection.liveness.level.value,
        pending_pings=connection.liveness.pending,
        silent=now - record.heard,
        idle=now - record.active,
        queued_bytes=connection.queued_bytes,
        messages_sent=connection.messages_sent,
        in_flight=connection.in_flight,
    )


def rtt_of(rtt: RttFilter) -> RttObject:
    """Return the figures of one connection."""
    return RttObject(
        median=rtt.median(),
        smoothed=rtt.smoothed(),
        variation=rtt.variation(),
        samples=rtt.accepted,
        outliers=rtt.outliers,
        rejected=rtt.rejected,
        clock_skew_corrections=rtt.clock_skew_corrections,
    )


async def disconnect(context: ApiContext, request: DisconnectRequest) -> str:
    """Close a user's connections."""
    close, asked = FORCE_DISCONNECT, request.disconnect
    if asked is not None and (asked.code or asked.reason):
        custom = close_of(asked.code, asked.reason)
        if custom is None:
            raise ReplyError(BAD_REQUEST)
        close = custom
    stay = frozenset(request.whitelist or ())
    if not request.client and not request.session:
        disconnect_all(context, UserId(request.user), close, stay)
        return "{}"
    for connection in connections_of(context, request):
        if connection.identity.client not in stay:
            connection.disconnect(close)
    return "{}"


def disconnect_all(
    context: ApiContext, user: UserId, close: Close, stay: Collection[str] = ()
) -> int:
    """Close all of a user's connections but those in *stay*; return how many it has.

    Connections that wait for a slot are closed too: they would take one that is freed
    here. Lost connections leave their channels now.
    """
    runtime = context.runtime
    found = runtime.connections.of_user(user) + runtime.connections.waiting(user)
    for connection in found:
        if connection.identity.client not in stay:
            connection.disconnect(close)
    if user:
        runtime.grace_period.end(user)
    return len(found)


async def refresh(context: ApiContext, request: RefreshRequest) -> str:
    """Set when connections expire, and their information for others."""
    expire_at = request.expire_at or 0
    past = 0 < expire_at <= context.runtime.clock.wall()
    info = optional_payload_of(request.info, None, context.settings.publication_size)
    for connection in connections_of(context, request):
        if request.expired or past:
            connection.disconnect(CONNECTION_EXPIRED)
        else:
            connection.refresh(expire_at, info)
    return "{}"

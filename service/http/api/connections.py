"""``/api/connections``, ``disconnect`` and ``refresh``: a user's live connections."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

from service.core.errors import (
    BAD_REQUEST,
    FORCE_DISCONNECT,
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
    "disconnect",
    "refresh",
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
        messages_sent: Messages whose write to its socket has ended (count).
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


async def connections(context: ApiContext, request: ConnectionsRequest) -> str:
    """Return a user's live connections."""
    found: dict[str, ConnectionObject] = {
        each.client: ConnectionObject(
            transport="websocket",
            protocol=each.protocol,
            user=request.user,
            state=StateObject({name: Empty() for name in each.channels}),
            status=msgspec.convert(each, StatusObject, from_attributes=True),
            rtt=(
                UNSET
                if each.rtt is None
                else msgspec.convert(each.rtt, RttObject, from_attributes=True)
            ),
        )
        for each in await context.runtime.people.connections(UserId(request.user))
    }
    return msgspec.json.encode(ConnectionsResult(found)).decode()


async def disconnect(context: ApiContext, request: DisconnectRequest) -> str:
    """Close a user's connections."""
    close, asked = FORCE_DISCONNECT, request.disconnect
    if asked is not None and (asked.code or asked.reason):
        custom = close_of(asked.code, asked.reason)
        if custom is None:
            words = "disconnect: no code and reason that clients understand"
            raise ReplyError(BAD_REQUEST, reason=words)
        close = custom
    if request.session:
        return "{}"  # no connection has a session id
    await context.runtime.people.disconnect(
        UserId(request.user),
        close,
        client=request.client or "",
        stay=frozenset(request.whitelist or ()),
    )
    return "{}"


async def refresh(context: ApiContext, request: RefreshRequest) -> str:
    """Set when connections expire, and their information for others."""
    expire_at = request.expire_at or 0
    past = 0 < expire_at <= context.runtime.clock.wall()
    info = optional_payload_of(request.info, None, context.settings.publication_size)
    if request.session:
        return "{}"
    people, user = context.runtime.people, UserId(request.user)
    if not request.expired and not past:
        await people.refresh(user, expire_at, info, client=request.client or "")
        return "{}"
    await people.expire(user, client=request.client or "")
    return "{}"

"""``/api/connections``, ``disconnect`` and ``refresh``: a user's live connections."""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import UNSET, Raw, UnsetType

from _speedups import RttFilter
from service.connections.registry import Connection
from service.core.errors import (
    BAD_REQUEST,
    CONNECTION_EXPIRED,
    FORCE_DISCONNECT,
    ReplyError,
)
from service.core.json_fields import optional_payload_of
from service.core.model import UserId
from service.http.api.context import ApiContext, Empty, Integer
from service.http.validation import close_of

__all__ = [
    "ConnectionsRequest",
    "ConnectionsResult",
    "DisconnectRequest",
    "RefreshRequest",
    "connections",
    "connections_of",
    "disconnect",
    "refresh",
    "rtt_of",
]


class ConnectionsRequest(msgspec.Struct, kw_only=True):
    """Ask about a user's live connections; *user* "" is the anonymous ones."""

    user: str


class StateObject(msgspec.Struct):
    """What a connection is subscribed to: the channels are the keys."""

    channels: dict[str, Empty]


class RttObject(msgspec.Struct):
    """One connection's pings.

    Attributes:
        median: Of the last 15 samples, seconds.
        smoothed: As RFC 6298 smooths, outliers damped; seconds.
        variation: Its deviation, seconds.
        samples: Pongs that were measured.
        outliers: Of these, those that were damped.
        rejected: Pongs later than 30 s, which measure a sleep and not a link.
        clock_skew_corrections: Times that no monotonic clock can give, discarded.
    """

    median: float
    smoothed: float
    variation: float
    samples: int
    outliers: int
    rejected: int
    clock_skew_corrections: int


class ConnectionObject(msgspec.Struct, omit_defaults=True):
    """One connection; *rtt* is there from its first pong on."""

    transport: str
    protocol: str
    user: str
    state: StateObject
    rtt: RttObject | UnsetType = UNSET


class ConnectionsResult(msgspec.Struct):
    """A user's connections, by client id."""

    connections: dict[str, ConnectionObject]


class DisconnectObject(msgspec.Struct):
    """How to close: a code from 3000 to 4999, and a reason in plain words."""

    code: Integer = 0
    reason: str = ""


class DisconnectRequest(msgspec.Struct, kw_only=True):
    """Close a user's live connections; *user* "" is the anonymous ones.

    Attributes:
        client: Only this connection.
        session: Only this session; there are none, so it finds nobody.
        whitelist: Client ids of connections that stay.
        disconnect: Absent, or with code 0: 3503, after which clients stay away.
    """

    user: str
    client: str | None = None
    session: str | None = None
    whitelist: list[str] | None = None
    disconnect: DisconnectObject | None = None


class RefreshRequest(msgspec.Struct, kw_only=True):
    """Set when a user's live connections expire; *user* "" is the anonymous ones.

    Attributes:
        client: Only this connection.
        session: Only this session; there are none, so it finds nobody.
        expired: Close them with 3005 now.
        expire_at: Unix seconds; 0 or absent for never.
        info: Shown to others from now on.
    """

    user: str
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
    """Return the live connections that a request is about."""
    if target.session:
        return []  # we give out no session ids
    return context.runtime.connections.of_user(UserId(target.user), target.client or "")


async def connections(context: ApiContext, request: ConnectionsRequest) -> str:
    """Return a user's live connections."""
    found: dict[str, ConnectionObject] = {}
    for connection in context.runtime.connections.of_user(UserId(request.user)):
        rtt = connection.liveness.rtt
        found[connection.identity.client] = ConnectionObject(
            transport="websocket",
            protocol=connection.protocol,
            user=request.user,
            state=StateObject({name: Empty() for name in connection.channels}),
            rtt=UNSET if rtt is None else rtt_of(rtt),
        )
    return msgspec.json.encode(ConnectionsResult(found)).decode()


def rtt_of(rtt: RttFilter) -> RttObject:
    """Return one connection's figures."""
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
    """Close connections."""
    close, asked = FORCE_DISCONNECT, request.disconnect
    if asked is not None and (asked.code or asked.reason):
        custom = close_of(asked.code, asked.reason)
        if custom is None:
            raise ReplyError(BAD_REQUEST)
        close = custom
    stay = frozenset(request.whitelist or ())
    user, runtime = UserId(request.user), context.runtime
    found = connections_of(context, request)
    everyone = not request.client and not request.session
    if everyone:
        # Who waits for a slot would get one of those that are given back now.
        found += runtime.connections.waiting(user)
    for connection in found:
        if connection.identity.client not in stay:
            connection.disconnect(close)
    if everyone and user:
        runtime.grace_period.end(user)
    return "{}"


async def refresh(context: ApiContext, request: RefreshRequest) -> str:
    """Change when connections expire, and what others see of them."""
    expire_at = request.expire_at or 0
    past = 0 < expire_at <= context.runtime.clock.wall()
    info = optional_payload_of(request.info, None, context.settings.publication_size)
    for connection in connections_of(context, request):
        if request.expired or past:
            connection.disconnect(CONNECTION_EXPIRED)
        else:
            connection.refresh(expire_at, info)
    return "{}"

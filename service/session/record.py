"""Record of a session: what a later invocation restores it from.

A process that holds its sockets never makes one. Where the gateway holds them, each
frame is handled by a session that was restored from here. Times are Unix milliseconds,
0 for never. What is not here is the session's for one frame alone: the command queue,
rates, pings and round-trip times, subscribes that have no outcome yet.

Where a client's row in a channel is (its state, command id and position) is not known
to the session, but to whatever delivers: `core.ports.SubscriberRow`.
"""

from __future__ import annotations

import msgspec

from service.core.model import ClientId, Override, RawJson, UserId
from service.session.port import Identity

__all__ = ["ChannelRecord", "SessionRecord", "identity_of"]


class ChannelRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """An established subscription.

    Attributes:
        server: Subscribed on the server's side.
        of_token: The token of the connect named it.
        positioned: The check of the position was granted.
        recoverable: Recovery was granted.
        hears_joins: The client is told of the joins and leaves of others.
        delta: It takes deltas.
        info: Shown to others in this channel alone, as JSON text.
        refreshable: The client may refresh it.
        end: When it expires.
        override: Options that differ from those of the channel's namespace.
    """

    server: bool = False
    of_token: bool = False
    positioned: bool = False
    recoverable: bool = False
    hears_joins: bool = False
    delta: bool = False
    info: str | None = None
    refreshable: bool = False
    end: int = 0
    override: dict[str, bool] = msgspec.field(default_factory=dict)

    @property
    def chan_info(self) -> RawJson | None:
        """`info` as the text that it is."""
        return None if self.info is None else RawJson(self.info)

    @property
    def overridden(self) -> Override:
        """`override` as options."""
        return Override(**self.override)


class SessionRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A session whose client is connected.

    Attributes:
        client: The connection's id.
        user: Its user, "" without one.
        conn_info: The user's info, shown to others, as JSON text.
        meta: Passed to hooks, as JSON text.
        token_id: The ``jti`` of the last token, "" for none.
        issued_at: When that was issued, in Unix seconds, 0 for unknown.
        refreshable: The client may refresh the connection.
        end: When the connection expires.
        connected_at: When the client had connected.
        active_at: When it last sent something.
        origin: The origin of its handshake, "" without one.
        address: Its address, "" if that is not known.
        refresh: The id of its last refresh command, 0 before the first.
        channels: Its subscriptions.
    """

    client: str
    user: str = ""
    conn_info: str | None = None
    meta: str | None = None
    token_id: str = ""
    issued_at: float = 0.0
    refreshable: bool = False
    end: int = 0
    connected_at: int = 0
    active_at: int = 0
    origin: str = ""
    address: str = ""
    refresh: int = 0
    channels: dict[str, ChannelRecord] = msgspec.field(default_factory=dict)


def identity_of(record: SessionRecord) -> Identity:
    """Return the identity of a session's client."""
    return Identity(
        ClientId(record.client),
        UserId(record.user),
        None if record.conn_info is None else RawJson(record.conn_info),
        None if record.meta is None else RawJson(record.meta),
    )

"""Port of the sessions whose sockets end at the gateway, on a shared table.

A socket *arrives* when the gateway opens it, and is *admitted* when its client has
shown who it is. Until it has ended it is listed in one of the parts over which the ids
of connections are spread: one alone would take 500 connects a second.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from service.core.errors import Close
from service.core.model import Channel, ClientId, UserId

__all__ = [
    "PARTS",
    "Listed",
    "Listing",
    "Sessions",
    "StoredChannel",
    "StoredSession",
    "Terms",
]

PARTS = 64
"""Parts over which connections are spread by their ids, in the format of a table."""


class StoredChannel(NamedTuple):
    """A channel of a session.

    Attributes:
        command: The id of the subscribe that wrote it, 0 for the server's.
        record: The session's record of the channel.
    """

    command: int
    record: str


class StoredSession(NamedTuple):
    """A session as stored.

    Attributes:
        record: The session's record, without its channels.
        channels: Those.
    """

    record: str
    channels: dict[Channel, StoredChannel]


class Terms(NamedTuple):
    """For how long a client may stay, as far as the sweeper has to know.

    Attributes:
        user: Its user, "" without one.
        token_id: The ``jti`` of its token, "" for none.
        issued_at: When that was issued, in Unix seconds; 0 for unknown.
        end: When it, or the first of its subscriptions, expires, in Unix milliseconds;
            0 for never.
    """

    user: UserId = UserId("")
    token_id: str = ""
    issued_at: float = 0.0
    end: int = 0


class Listed(NamedTuple):
    """A connection that was or is being admitted, or has arrived.

    Attributes:
        client: Its id.
        at: When, in Unix milliseconds.
        terms: Those of one that has not just arrived.
    """

    client: ClientId
    at: int
    terms: Terms = Terms()


class Listing(NamedTuple):
    """The connections of one part.

    Attributes:
        admitted: Connections of clients; one that is being admitted may have no slot.
        arrived: Sockets whose clients have not connected yet, or never will.
        evicted: Connections that lost their places to others and have to be closed.
    """

    admitted: list[Listed]
    arrived: list[Listed]
    evicted: list[ClientId]


class Sessions(Protocol):
    """The sessions of a deployment whose sockets end at the gateway.

    Every method raises `StoreError` when its outcome is unknown; each may be repeated.
    """

    async def arrive(self, client: ClientId, record: str) -> None:
        """Note a socket that is about to be opened, and what its handshake said."""

    async def arrived(self, client: ClientId) -> str | None:
        """Return what `arrive` was given; None once its client connects, or it ends."""

    async def admit(
        self, client: ClientId, address: str, terms: Terms
    ) -> list[ClientId] | Close:
        """Give a client its slot, as `ports.Directory.admit`; it has arrived no more.

        Returns:
            The connections *at the gateway* that lost their slots to it, or the close.
        """

    async def open(self, client: ClientId, record: str) -> bool:
        """Store the session of a client that was admitted; False if it has one."""

    async def load(self, client: ClientId) -> StoredSession | None:
        """Return a session; None if its client is not connected."""

    async def save(self, client: ClientId, record: str, refresh: int) -> bool:
        """Replace the record of a session.

        Args:
            client: The connection.
            record: The session's record, without its channels.
            refresh: The id of its last refresh command.

        Returns:
            False if a record of a later refresh is stored, or none: nothing is changed.
        """

    async def save_channel(
        self, client: ClientId, channel: Channel, command: int, record: str
    ) -> None:
        """Replace the session's record of a channel, if it is still that command's."""

    async def set_terms(self, client: ClientId, terms: Terms) -> None:
        """Set the terms of a client that was admitted, all but its user."""

    async def end(self, client: ClientId) -> bool:
        """Delete everything of a connection that is closed; False if there was nothing.

        Its rows are deleted too: `Subscribers.remove` for each of its channels.
        """

    async def of_user(self, user: UserId) -> list[ClientId]:
        """Return the connections of a user at the gateway."""

    async def listing(self, part: int) -> Listing:
        """Return the connections of one part, counted from 0."""

    async def settle(self, client: ClientId) -> None:
        """Delete the notice of an evicted connection: it is closed."""

"""Who is connected: every connection, by its id and by its user.

A connection is here from its first byte to its last; it has a user once it has
connected. The gauges are counts of these records and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from service.model import ClientId, UserId
from service.session.port import Identity

__all__ = ["Registry"]


class _Connection(Protocol):
    @property
    def identity(self) -> Identity: ...


C = TypeVar("C", bound=_Connection)


class Registry(Generic[C]):
    """The connections of this process."""

    def __init__(self) -> None:
        self._all: set[C] = set()
        self._users: dict[UserId, dict[ClientId, C]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[C]:
        return iter(tuple(self._all))

    @property
    def users(self) -> int:
        """Different users that are connected; "" counts as one."""
        return len(self._users)

    @property
    def connected(self) -> int:
        """Connections that have a user: clients, in the server API's words."""
        return sum(len(clients) for clients in self._users.values())

    def add(self, connection: C) -> None:
        """Take in a connection that nobody is known of yet."""
        self._all.add(connection)

    def identify(self, connection: C) -> None:
        """Take note that a connection has a user now."""
        identity = connection.identity
        self._users.setdefault(identity.user, {})[identity.client] = connection

    def remove(self, connection: C) -> None:
        """Forget a connection; harmless when it is not there."""
        self._all.discard(connection)
        identity = connection.identity
        clients = self._users.get(identity.user)
        if clients is not None and clients.get(identity.client) is connection:
            del clients[identity.client]
            if not clients:
                del self._users[identity.user]

    def of_user(self, user: UserId, client: str = "") -> list[C]:
        """Return a user's connections; only the one with id *client* if given."""
        clients = self._users.get(user, {})
        if client:
            found = clients.get(ClientId(client))
            return [] if found is None else [found]
        return list(clients.values())

"""Who is connected: one record per connection, and everything else derived from them.

A connection is here from its first byte to its last (``open`` to ``remove``). In
between it may hold a *slot*: from its admission to the moment when it begins to end
(``take`` to ``release``). A slot is what limits count, what the server API finds and
what the gauges show; a socket that only waits for its peer to take the close frame
holds none, so a ghost takes nobody's place.

Invariants, after every call:

* every index holds exactly the records that have a slot, each under its own key;
* a record leaves all of them on one path, `release`, which `remove` takes too; both may
  be called any number of times, in any order;
* nothing here calls out but `Record.settled`, last of all, so nothing comes between.

The activity clock of a record is moved by what the peer sends and by what it takes
(`Record.active`); `Record.heard` by what it sends alone: a write that the kernel
accepted proves nothing about the peer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from service.core.model import ClientId, UserId
from service.session.port import Identity

__all__ = ["Record", "Registry"]


class _Connection(Protocol):
    @property
    def identity(self) -> Identity: ...


C = TypeVar("C", bound=_Connection)


class Record(Generic[C]):
    """One connection; times as `Clock.now`.

    Attributes:
        connection: Whose it is.
        address: Where it comes from, as text; "" when that is not known.
        opened: When it came.
        active: When its peer last sent or took something.
        heard: When its peer last sent something.
        settled: Called once, at the next sign of life or when it is over.
        admitted: It has a slot.
        over: It is ending, or has ended: it gets no slot any more.
    """

    __slots__ = (
        "active",
        "address",
        "admitted",
        "client",
        "connection",
        "heard",
        "opened",
        "over",
        "settled",
        "user",
    )

    def __init__(self, connection: C, address: str, now: float) -> None:
        self.connection = connection
        self.address = address
        self.opened = now
        self.active = now
        self.heard = now
        self.settled: list[Callable[[], None]] = []
        self.admitted = False
        self.over = False
        self.user = UserId("")
        self.client = ClientId("")

    def hear(self, now: float) -> None:
        """Take note of a sign of life."""
        self.active = self.heard = now
        if self.settled:
            self.settle()

    def settle(self) -> None:
        """Tell those that wait for it."""
        settled, self.settled = self.settled, []
        for tell in settled:
            tell()


class Registry(Generic[C]):
    """The connections of this process."""

    def __init__(self) -> None:
        self._records: dict[C, Record[C]] = {}
        self._slots: dict[ClientId, Record[C]] = {}
        self._users: dict[UserId, dict[ClientId, Record[C]]] = {}
        self._addresses: dict[str, dict[ClientId, Record[C]]] = {}
        self._waiting: dict[Record[C], None] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[C]:
        return iter(tuple(self._records))

    @property
    def users(self) -> int:
        """Different users that are connected; "" counts as one."""
        return len(self._users)

    @property
    def connected(self) -> int:
        """Connections that have a slot: clients, in the server API's words."""
        return len(self._slots)

    def states(self) -> dict[str, float]:
        """Return how many connections wait for a slot, have one, and are ending."""
        ending = sum(record.over for record in self._records.values())
        pending = len(self._records) - len(self._slots) - ending
        return {"pending": pending, "connected": len(self._slots), "closing": ending}

    def open(self, connection: C, address: str, now: float) -> Record[C]:
        """Take in a connection that nobody is known of yet."""
        record = self._records[connection] = Record(connection, address, now)
        return record

    def wait(self, record: Record[C]) -> None:
        """Take note that a connection is known, and waits for others to give way."""
        if not record.over:
            self._waiting[record] = None

    def waiting(self, user: UserId) -> list[C]:
        """Return a user's connections that wait for a slot."""
        found = [record.connection for record in self._waiting]
        return [each for each in found if each.identity.user == user]

    def take(self, record: Record[C], identity: Identity) -> None:
        """Give a connection its slot; nothing happens when it is over."""
        if record.over or record.admitted:
            return
        record.admitted = True
        self._waiting.pop(record, None)
        self._enter(record, identity)

    def _enter(self, record: Record[C], identity: Identity) -> None:
        record.user, record.client = identity.user, identity.client
        self._slots[record.client] = record
        self._users.setdefault(record.user, {})[record.client] = record
        if not record.user:
            self._addresses.setdefault(record.address, {})[record.client] = record

    def release(self, record: Record[C]) -> None:
        """Free a connection's slot: it is ending."""
        record.over = True
        self._waiting.pop(record, None)
        if record.admitted:
            record.admitted = False
            self._slots.pop(record.client, None)
            _drop(self._users, record.user, record.client)
            if not record.user:
                _drop(self._addresses, record.address, record.client)
        record.settle()

    def remove(self, record: Record[C]) -> None:
        """Forget a connection: it is over."""
        self.release(record)
        self._records.pop(record.connection, None)

    def peers(self, identity: Identity, address: str) -> list[Record[C]]:
        """Return who shares a limit: a user's slots, or an address's without a user."""
        if identity.user:
            return list(self._users.get(identity.user, {}).values())
        return list(self._addresses.get(address, {}).values())

    def slots(self) -> Iterator[Record[C]]:
        """Iterate over the records that have a slot; do not change them meanwhile."""
        return iter(self._slots.values())

    def find(self, client: ClientId) -> Record[C] | None:
        """Return the record of a client that has a slot."""
        return self._slots.get(client)

    def active(self, client: ClientId) -> float | None:
        """Return when a client that has a slot was last active; None if it has none."""
        record = self.find(client)
        return None if record is None else record.active

    def records(self) -> list[Record[C]]:
        """Return every record, and what has a slot and no record any more."""
        return list({*self._records.values(), *self._slots.values()})

    def mend(self, record: Record[C]) -> int:
        """Put one record into every index that it belongs to, and take it from others.

        Returns:
            1 if anything was wrong, else 0.
        """
        identity = record.connection.identity
        known = self._records.get(record.connection) is record
        here = known and record.admitted and not record.over
        users = self._users.get(identity.user, {})
        slot = self._slots.get(identity.client) is record
        if here == slot == (users.get(identity.client) is record):
            return 0
        self._erase(record)
        record.admitted = here
        if here:
            self._enter(record, identity)
        return 1

    def exorcise(self) -> int:
        """Take from the other indexes what has no slot any more; return how many.

        Costs a count of each unless they disagree.
        """
        entries = sum(map(len, self._users.values()))
        nobody = sum(map(len, self._addresses.values()))
        here = len(self._users.get(UserId(""), ()))
        if entries == len(self._slots) and nobody == here:
            return 0
        entered = [
            *self._slots.values(),
            *(one for clients in self._users.values() for one in clients.values()),
            *(one for clients in self._addresses.values() for one in clients.values()),
        ]
        gone = {one for one in entered if self._records.get(one.connection) is not one}
        for record in gone:
            self._erase(record)
            record.admitted = False
        return len(gone)

    def _erase(self, record: Record[C]) -> None:
        """Look for a record everywhere: what it says of itself may be wrong."""
        for client in [c for c, found in self._slots.items() if found is record]:
            del self._slots[client]
        _purge(self._users, record)
        _purge(self._addresses, record)

    def of_user(self, user: UserId, client: str = "") -> list[C]:
        """Return a user's connections; only the one with id *client* if given."""
        clients = self._users.get(user, {})
        if client:
            found = clients.get(ClientId(client))
            return [] if found is None else [found.connection]
        return [record.connection for record in clients.values()]


K = TypeVar("K")


def _drop(index: dict[K, dict[ClientId, Record[C]]], key: K, client: ClientId) -> None:
    # Tolerant: the end of a connection must not depend on a count that is wrong.
    clients = index.get(key, {})
    clients.pop(client, None)
    if not clients:
        index.pop(key, None)


def _purge(index: dict[K, dict[ClientId, Record[C]]], record: Record[C]) -> None:
    found = [
        (key, client)
        for key, clients in index.items()
        for client, one in clients.items()
        if one is record
    ]
    for key, client in found:
        _drop(index, key, client)

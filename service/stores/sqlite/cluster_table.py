"""The tables of the processes that share a SQLite file. Blocks.

    nodes        a process: until when it lives unless it renews, and when it was marked
                 dead, 0 if it was not
    connections  the connections of all, under the limits of their owners
    evictions    connections that their node has to close
    presence     subscribers that others may see
    notices      what a node has to do
    answers      what others answered to a notice

Each method is one transaction, or a single statement. A node that is late is marked
dead, and loses everything that it has here, in one transaction: nothing of a dead node
is ever read, and of those that try, one marks it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from service.core.cluster import Answer, Notice, PresenceKey, PresenceRow
from service.core.model import Channel, ClientId, RawJson, UserId

__all__ = ["SlotRequest", "ClusterTable"]

KEPT = 60_000  # ms for which the row of a dead node tells the others

_OF_NODES = ("connections", "evictions", "presence", "notices")


class NodeEntry(NamedTuple):
    """A node, as stored.

    Attributes:
        name: Its name.
        dead: It was marked dead.
        figures: Of the server API's info, as JSON text.
        feed: The newest entries of its feed, as JSON text.
    """

    name: str
    dead: bool
    figures: str
    feed: str


class SlotRequest(NamedTuple):
    """A connection that asks for a slot.

    Attributes:
        client: Its id.
        node: Its node.
        owner: Its user, or its address without one.
        limit: Connections that the owner may have.
        total: Connections that all may have.
        evict: Whether the owner's least recently active ones make room.
        now: Unix milliseconds.
        expires: When it stops to count, Unix milliseconds.
        active: When connections of this node were last active, Unix milliseconds.
    """

    client: ClientId
    node: str
    owner: str
    limit: int
    total: int
    evict: bool
    now: int
    expires: int
    active: Mapping[ClientId, int]


class Outcome(NamedTuple):
    """What came of an admission.

    Attributes:
        refused: "owner" or "total", by which limit it was; "" if it was not.
        evicted: The connections that lost their slots to it.
    """

    refused: str
    evicted: tuple[ClientId, ...] = ()


class ClusterTable:
    """The tables of one database.

    Args:
        connection: In autocommit mode.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._many = connection.executemany

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            self._execute("ROLLBACK")
            raise

    # Nodes

    def register(self, name: str, until: int, figures: str) -> None:
        """Write the row of a node."""
        self._execute(
            "INSERT OR REPLACE INTO nodes VALUES (?, ?, 0, ?, '')",
            (name, until, figures),
        )

    def renew(self, name: str, until: int, figures: str) -> bool:
        """Keep a node alive; False if it was marked dead."""
        renewed = self._execute(
            "UPDATE nodes SET until = ?, figures = ? WHERE name = ? AND dead = 0",
            (until, figures, name),
        )
        return renewed.rowcount == 1

    def tell(self, name: str, feed: str) -> None:
        """Replace the feed of a node."""
        self._execute("UPDATE nodes SET feed = ? WHERE name = ?", (feed, name))

    def nodes(self) -> list[NodeEntry]:
        """Return all nodes."""
        rows = self._execute("SELECT name, dead, figures, feed FROM nodes").fetchall()
        return [NodeEntry(name, dead > 0, *rest) for name, dead, *rest in rows]

    def late(self, now: int) -> bool:
        """Return whether there is something for `reap` to do."""
        found = self._execute(
            "SELECT 1 FROM nodes WHERE (dead = 0 AND until <= ?)"
            " OR (dead > 0 AND dead <= ?) LIMIT 1",
            (now, now - KEPT),
        ).fetchall()
        return bool(found)

    def reap(self, now: int) -> int:
        """Mark late nodes, and delete what they had; return how many were late."""
        with self._transaction():
            rows = self._execute(
                "SELECT name FROM nodes WHERE dead = 0 AND until <= ?", (now,)
            ).fetchall()
            for (name,) in rows:
                self._empty(name)
                self._execute("UPDATE nodes SET dead = ? WHERE name = ?", (now, name))
            self._execute(
                "DELETE FROM nodes WHERE dead > 0 AND dead <= ?", (now - KEPT,)
            )
            self._execute("DELETE FROM notices WHERE expires <= ?", (now,))
            self._execute("DELETE FROM answers WHERE expires <= ?", (now,))
        return len(rows)

    def leave_all(self, name: str, now: int) -> None:
        """End a node: delete what it had, and let the others know."""
        with self._transaction():
            had = self._execute(
                "SELECT 1 FROM presence WHERE node = ? LIMIT 1", (name,)
            ).fetchall()
            self._empty(name)
            if had:
                self._execute("UPDATE nodes SET dead = ? WHERE name = ?", (now, name))
            else:
                self._execute("DELETE FROM nodes WHERE name = ?", (name,))

    def _empty(self, name: str) -> None:
        for table in _OF_NODES:
            self._execute(f"DELETE FROM {table} WHERE node = ?", (name,))

    # Connections

    def admit(self, it: SlotRequest) -> Outcome:
        """Give a connection its slot, if the limits allow it. Safe to repeat."""
        with self._transaction():
            return self._admit(it)

    def _admit(self, it: SlotRequest) -> Outcome:
        execute = self._execute
        execute("DELETE FROM connections WHERE client = ?", (it.client,))
        peers = execute(
            "SELECT client, node, active FROM connections"
            " WHERE owner = ? AND expires > ?",
            (it.owner, it.now),
        ).fetchall()
        surplus = len(peers) + 1 - it.limit
        if surplus > 0 and not it.evict:
            return Outcome("owner")
        peers.sort(key=lambda row: max(row[2], it.active.get(row[0], 0)))
        evicted = peers[: max(0, surplus)]
        (total,) = execute("SELECT count(*) FROM connections").fetchone()
        if total - len(evicted) >= it.total:
            return Outcome("total")
        for client, node, _ in evicted:
            execute("DELETE FROM connections WHERE client = ?", (client,))
            execute("INSERT OR REPLACE INTO evictions VALUES (?, ?)", (node, client))
        execute(
            "INSERT INTO connections VALUES (?, ?, ?, ?, ?)",
            (it.client, it.node, it.owner, it.now, it.expires),
        )
        return Outcome("", tuple(ClientId(client) for client, _, _ in evicted))

    def leave(self, client: ClientId) -> None:
        """Free a connection's slot. Safe to repeat."""
        with self._transaction():
            self._execute("DELETE FROM connections WHERE client = ?", (client,))
            self._execute("DELETE FROM evictions WHERE client = ?", (client,))

    def touch(self, active: Mapping[ClientId, int]) -> None:
        """Record when connections were last active."""
        with self._transaction():
            self._many(
                "UPDATE connections SET active = ? WHERE client = ?",
                [(at, client) for client, at in active.items()],
            )

    def evictions(self, names: Collection[str]) -> list[ClientId]:
        """Return the connections that nodes have to close."""
        rows = self._execute(
            f"SELECT client FROM evictions WHERE node IN ({_marks(names)})",
            tuple(names),
        ).fetchall()
        return [ClientId(client) for (client,) in rows]

    def forget_evictions(self, clients: Collection[ClientId]) -> None:
        """Delete that connections have to be closed: they are."""
        with self._transaction():
            self._many(
                "DELETE FROM evictions WHERE client = ?",
                [(client,) for client in clients],
            )

    def count(self) -> int:
        """Return how many connections have a slot."""
        (count,) = self._execute("SELECT count(*) FROM connections").fetchone()
        return int(count)

    # Presence

    def enter(self, rows: Sequence[PresenceRow]) -> None:
        """Write rows, in place of what was there."""
        with self._transaction():
            self._many(
                "INSERT OR REPLACE INTO presence VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def remove(self, keys: Sequence[PresenceKey]) -> None:
        """Delete rows."""
        with self._transaction():
            self._many("DELETE FROM presence WHERE channel = ? AND client = ?", keys)

    def present(self, channel: Channel) -> list[PresenceRow]:
        """Return the rows of a channel."""
        rows = self._execute(
            "SELECT * FROM presence WHERE channel = ?", (channel,)
        ).fetchall()
        return [
            PresenceRow(
                Channel(name),
                ClientId(client),
                UserId(user),
                node,
                RawJson(info),
                joined,
                lost,
                bool(present),
                bool(announced),
            )
            for (
                name,
                client,
                user,
                node,
                info,
                joined,
                lost,
                present,
                announced,
            ) in rows
        ]

    # Notices

    def send(
        self, notice: Notice, names: Collection[str], expires: int
    ) -> Collection[str]:
        """Leave a notice for every living node but *names*; return which."""
        with self._transaction():
            rows = self._execute("SELECT name FROM nodes WHERE dead = 0").fetchall()
            others = [name for (name,) in rows if name not in names]
            self._many(
                "INSERT OR REPLACE INTO notices VALUES (?, ?, ?, ?, ?, ?)",
                [(name, *notice, expires) for name in others],
            )
        return others

    def notices(self, names: Collection[str], now: int) -> list[Notice]:
        """Return the notices of a node that have not expired, the oldest first."""
        rows = self._execute(
            "SELECT id, action, body, asker FROM notices"
            f" WHERE node IN ({_marks(names)}) AND expires > ? ORDER BY id",
            (*names, now),
        ).fetchall()
        return [Notice(*row) for row in rows]

    def settle(self, names: Collection[str], ids: Collection[str]) -> None:
        """Delete notices of a node."""
        with self._transaction():
            self._many(
                "DELETE FROM notices WHERE node = ? AND id = ?",
                [(name, each) for name in names for each in ids],
            )

    def answer(
        self, notice: str, node: str, parts: Sequence[str], expires: int
    ) -> None:
        """Answer a notice."""
        with self._transaction():
            self._many(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (notice, node, index, len(parts), body, expires)
                    for index, body in enumerate(parts)
                ],
            )

    def answers(self, notice: str) -> list[Answer]:
        """Return the answers to a notice."""
        rows = self._execute(
            "SELECT node, part, parts, body FROM answers WHERE id = ?", (notice,)
        ).fetchall()
        return [Answer(*row) for row in rows]

    def forget_answers(self, notice: str) -> None:
        """Delete the answers to a notice."""
        self._execute("DELETE FROM answers WHERE id = ?", (notice,))


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))

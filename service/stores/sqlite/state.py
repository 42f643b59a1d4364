"""The State port on SQLite: small shared values, each with the time of its end.

Each method is one statement, which SQLite runs as a transaction of its own: so a value
is taken once, whatever other threads and processes do. Changes are made by the writer's
thread between two commits of the log, in the order of the calls; they touch nothing
that the log caches.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from service.core.ports import Clock, StateEntry
from service.stores.history_cache import milliseconds
from service.stores.state_sizes import check_sizes

__all__ = ["SqliteState", "StateTable"]

T = TypeVar("T")


class StateTable:
    """The table ``state`` of one database. Blocks.

    Args:
        connection: In autocommit mode.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.use(connection)

    def use(self, connection: sqlite3.Connection) -> None:
        """Go on with another connection to the same file."""
        self._execute = connection.execute

    def put(self, kind: str, key: str, value: str, expires: int) -> None:
        """Keep a value until *expires* (Unix ms), in place of what was there."""
        self._execute(
            "INSERT OR REPLACE INTO state (kind, key, value, expires)"
            " VALUES (?, ?, ?, ?)",
            (kind, key, value, expires),
        )

    def take(self, kind: str, key: str, now: int) -> str | None:
        """Remove an entry; return its value unless expired at *now* (Unix ms)."""
        # All rows are fetched: the statement is committed when it has no more.
        rows = self._execute(
            "DELETE FROM state WHERE kind = ? AND key = ? RETURNING value, expires",
            (kind, key),
        ).fetchall()
        return rows[0][0] if rows and rows[0][1] > now else None

    def entries(self, kind: str, now: int) -> list[StateEntry]:
        """Return the entries of a kind that have not expired at *now* (Unix ms)."""
        rows = self._execute(
            "SELECT key, value, expires FROM state WHERE kind = ? AND expires > ?",
            (kind, now),
        ).fetchall()
        return [StateEntry(key, value, expires / 1000) for key, value, expires in rows]

    def delete_expired(self, now: int, limit: int) -> bool:
        """Delete up to *limit* expired entries; return whether there may be more."""
        deleted = self._execute(
            "DELETE FROM state WHERE (kind, key) IN"
            " (SELECT kind, key FROM state WHERE expires <= ? LIMIT ?)",
            (now, limit),
        )
        return deleted.rowcount == limit


class _OnThread(Protocol):
    """Call *run* with the table on a thread of the store; raises `StoreUnavailable`."""

    def __call__(self, run: Callable[[StateTable], T]) -> Coroutine[Any, Any, T]: ...


class SqliteState:
    """The State port on a `SqliteStore`.

    Args:
        clock: Tells what has expired.
        write: Runs what changes something, on the writer's thread.
        read: Runs what only reads, on the reader's thread.
    """

    def __init__(self, clock: Clock, *, write: _OnThread, read: _OnThread) -> None:
        self._clock = clock
        self._write = write
        self._read = read

    async def put(self, kind: str, key: str, value: str, ttl: float) -> None:
        """Keep *value* for *ttl* seconds; see the port.

        Raises:
            ValueError: Key or value is too large, or is not text.
            StoreUnavailable: It is not known to be kept.
        """
        check_sizes(key, value)
        expires = self._now() + milliseconds(ttl)
        await self._write(lambda table: table.put(kind, key, value, expires))

    async def take(self, kind: str, key: str) -> str | None:
        """Remove an entry and return its value; see the port.

        Raises:
            ValueError: The key is too large, or is not text.
            StoreUnavailable: Nobody knows whether it was removed.
        """
        check_sizes(key)
        now = self._now()
        return await self._write(lambda table: table.take(kind, key, now))

    async def entries(self, kind: str) -> list[StateEntry]:
        """Return all entries of a kind; see the port.

        Raises:
            StoreUnavailable: They cannot be read.
        """
        now = self._now()
        return await self._read(lambda table: table.entries(kind, now))

    def _now(self) -> int:
        return int(self._clock.wall() * 1000)

"""Blanking publications, in steps that appends need not wait for.

Offsets, times and ids stay, so nothing that the log keeps in memory changes. What a
step blanks is overwritten in the file at once, and in the write-ahead log at the end;
only backups still have it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import NamedTuple

from service.core.model import Channel

__all__ = ["Blanked", "Eraser"]

EXAMINED = 256  # publications per step; what is large is read, so not many


class Blanked(NamedTuple):
    """What one step did.

    Attributes:
        last: The id up to which everything was looked at.
        blanked: Count of publications.
        channels: Where they are.
    """

    last: int
    blanked: int
    channels: list[Channel]


class Eraser:
    """The writer's; on its thread.

    Args:
        connection: In autocommit mode.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute

    def newest(self) -> int:
        """Return the id of the newest publication; none below is added later."""
        newest: int
        (newest,) = self._execute(
            "SELECT coalesce(max(id), 0) FROM publications"
        ).fetchone()
        return newest

    def step(self, info: str, after: int, bound: int) -> Blanked:
        """Blank some of those above the id *after*, up to *bound*, that are sought."""
        (last,) = self._execute(
            "SELECT coalesce(max(id), ?) FROM (SELECT id FROM publications"
            " WHERE id > ? AND id <= ? ORDER BY id LIMIT ?)",
            (bound, after, bound, EXAMINED),
        ).fetchone()
        self._execute("PRAGMA secure_delete = ON")
        try:
            found = self._execute(
                "UPDATE publications SET data = 'null', info = NULL, tags = NULL"
                " WHERE id > ? AND id <= ? AND substr(info, 1, ?) = ?"
                " RETURNING channel_id",
                (after, last, len(info), info),
            ).fetchall()
        finally:
            self._execute("PRAGMA secure_delete = OFF")
        names = [
            self._execute("SELECT name FROM channels WHERE id = ?", row).fetchone()
            for row in set(found)
        ]
        return Blanked(last, len(found), [Channel(name) for (name,) in names])

    def finish(self) -> None:
        """Empty the write-ahead log, if no other process is reading."""
        with contextlib.suppress(sqlite3.Error):
            self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

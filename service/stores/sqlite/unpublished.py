"""Channels that are known to have no metadata, without a look at the file.

Many a channel that clients subscribe to never had a publication: that of one user, say.
Where its stream ends is then its slot's epoch, and a read of the file would be two
tasks, a job of the thread that reads, and its waits for the interpreter's lock: a fifth
of what a connect with a subscribe costs.

Invariants, for a file that this process alone has open (a shared one has no such
knowledge, for others write to it):

* While a slot is blank, the file has no row in ``channels`` whose name is in it. So no
  channel of the slot was published to with history, and its epoch, which changes only
  where such a row is deleted, is the one that was read at the start.
* Only the writer's thread marks a slot, before it writes the row, so before anybody is
  told of the commit; whether it is committed or not, the slot is never blank again.
  The event loop reads it. So whoever was told of a publication finds it marked.
* With more than `MOST` names at the start, nothing is known: few slots would be blank.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from service.core.model import Channel, HistoryPage, Position
from service.stores.sqlite.channel_state import SLOTS, slot_of

__all__ = ["Unpublished"]

MOST: Final = 2 * SLOTS  # names; with so many, an eighth of the slots is blank


class Unpublished:
    """The blank slots of one file. Reading them blocks.

    Raises:
        sqlite3.Error: They cannot be read.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._blank = bytearray(b"\1" * SLOTS)
        names = connection.execute("SELECT name FROM channels LIMIT ?", (MOST + 1,))
        count = 0
        for (name,) in names:
            self._blank[slot_of(name)] = 0
            count += 1
        if count > MOST:
            self._blank = bytearray(SLOTS)
        self._epochs: dict[int, str] = dict(
            connection.execute("SELECT slot, epoch FROM generations")
        )
        [(self._general,)] = connection.execute("SELECT generation FROM meta")

    def mark(self, channel: Channel) -> None:
        """Note that *channel* is about to have metadata. On the writer's thread."""
        self._blank[slot_of(channel)] = 0

    def page(self, channel: Channel) -> HistoryPage | None:
        """Answer a read of a channel without metadata; None if it may have some."""
        try:
            slot = slot_of(channel)
        except UnicodeEncodeError:
            return None
        if not self._blank[slot]:
            return None
        return HistoryPage([], Position(0, self._epochs.get(slot, self._general)))

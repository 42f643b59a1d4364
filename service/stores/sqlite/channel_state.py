"""What the writer knows of the database, and how it finds out that this is old.

Invariant: the states, the serial and the next ids are what the database holds; or,
after another connection wrote, they lead to a refusal before anything is stored:

* it appended anything: our next global id is taken, or the channel's offset;
* it created a channel: our next channel id or its name is taken;
* it deleted anything: a trigger changed ``meta.serial``, which each insert compares.

After any failure everything is forgotten and read again.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Iterator
from itertools import islice
from zlib import crc32

from service.core.model import Channel
from service.core.ports import History
from service.stores.sqlite.batch import State
from service.stores.sqlite.schema import new_epoch

__all__ = ["ChannelStateCache", "unpublished_epoch"]

CHANNELS = 65_536  # count; states kept in memory; above, the older half is dropped

# A channel that was never published to has the epoch of its slot. When metadata
# expires, only that slot gets a new one: with a single epoch for all, each channel
# that dies would cost every unpublished channel its epoch.
SLOTS = 65_536  # count

_FIND = """
SELECT c.id, c.epoch, c.top, c.touched, c.ttl, c.meta_ttl, c.version, c.version_epoch,
    p.offset, p.time,
    (SELECT min(offset) FROM publications WHERE channel_id = c.id)
FROM channels AS c LEFT JOIN publications AS p ON p.id = (
    SELECT id FROM publications WHERE channel_id = c.id ORDER BY offset DESC LIMIT 1
) WHERE c.name = ?
"""


def unpublished_epoch(connection: sqlite3.Connection, channel: Channel) -> str:
    """Return the epoch of a channel that has no metadata."""
    epoch: str
    (epoch,) = connection.execute(
        "SELECT coalesce((SELECT epoch FROM generations WHERE slot = ?), generation)"
        " FROM meta WHERE id = 1",
        (_slot(channel),),
    ).fetchone()
    return epoch


def _slot(channel: Channel) -> int:
    return crc32(channel.encode()) % SLOTS


class ChannelStateCache:
    """The writer's connection and the cached state of what it writes to.

    Args:
        connection: In autocommit mode; nobody else may use it for writing.
        chance: Makes epochs.

    Attributes:
        execute: Of the connection.
        serial: That of the database; -1 when nothing is known.
        next_id: Of a publication.
        next_channel: Of a channel.
        states: By channel.
    """

    def __init__(self, connection: sqlite3.Connection, rng: random.Random) -> None:
        self._connection = connection
        self._rng = rng
        self.execute = connection.execute
        self.states: dict[Channel, State] = {}
        self.serial = -1
        self.next_id = 0
        self.next_channel = 0

    def prepare(self) -> None:
        """Get ready for a batch that relies on what is cached."""
        if self.serial < 0:
            self.refresh()
        # Never within a batch: it counts on the states it has changed.
        if len(self.states) > CHANNELS:
            for name in list(islice(self.states, CHANNELS // 2)):
                del self.states[name]

    def load(self, channel: Channel, history: History) -> State:
        """Put a channel's state, or that of a new channel, into the cache."""
        state = self.find(channel)
        if state is None:
            epoch = unpublished_epoch(self._connection, channel)
            state = State(self.next_channel, channel, epoch, history)
            self.next_channel += 1
        elif state.history[1:] != history[1:]:
            state.changed = True
            state.due = 0  # at once: it may expire sooner than its row says
        state.history = history
        self.states[channel] = state
        return state

    def find(self, channel: Channel) -> State | None:
        """Read a channel's state; None if it has no metadata."""
        row = self.execute(_FIND, (channel,)).fetchone()
        if row is None:
            return None
        history = History(0, row[4] / 1000, row[5] / 1000)
        state = State(row[0], channel, row[1], history)
        state.new = False
        state.version, state.version_epoch = row[6], row[7]
        state.top = max(row[2], row[8] or 0)
        state.time = max(row[3], row[9] or 0)
        state.first = row[10] or state.top + 1
        return state

    def delete(self, number: int, bound: int) -> None:
        """Delete a channel's publications up to offset *bound*."""
        deleted = self.execute(
            "DELETE FROM publications WHERE channel_id = ? AND offset <= ?",
            (number, bound),
        )
        self.serial += deleted.rowcount  # as the trigger did

    def expire(self, channel: Channel, number: int, epoch: str) -> None:
        """Delete a channel's metadata. Its offsets will restart: in another epoch."""
        self.execute("DELETE FROM channels WHERE id = ?", (number,))
        self.states.pop(channel, None)
        fresh = epoch
        while fresh == epoch:
            fresh = new_epoch(self._rng)
        self.execute(
            "INSERT OR REPLACE INTO generations VALUES (?, ?)", (_slot(channel), fresh)
        )
        self.serial += 1  # as the trigger did

    def bump(self) -> None:
        """Tell other connections that something is not as it was."""
        self.execute("UPDATE meta SET serial = serial + 1 WHERE id = 1")
        self.serial += 1

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Lock the database; commit at the end, or undo everything."""
        try:
            self.execute("BEGIN IMMEDIATE")
            self.refresh()
            yield
            self.execute("COMMIT")
        except BaseException:
            self.rollback()
            raise

    def refresh(self) -> None:
        """Compare what is cached with the database; forget it if that is newer."""
        serial, number, channel = self.execute(
            "SELECT serial,"
            " max(last_id, coalesce((SELECT max(id) FROM publications), 0)) + 1,"
            " (SELECT coalesce(max(id), 0) + 1 FROM channels) FROM meta WHERE id = 1"
        ).fetchone()
        known = (self.serial, self.next_id)
        # Our own next channel id may be above: a new channel's row can expire.
        if known != (serial, number) or channel > self.next_channel:
            self.states.clear()
        self.serial, self.next_id = serial, number
        self.next_channel = max(channel, self.next_channel)

    def rollback(self) -> None:
        """End a transaction that failed, and forget what may not be true."""
        self.states.clear()
        self.serial = -1
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self.execute("ROLLBACK")

"""The log in SQLite: stores a batch of appends in one transaction. Blocks.

For the writer's thread only. A batch is planned in memory, from cached channel states,
and usually written by *one* statement, which SQLite runs as a transaction of its own
(measured against BEGIN, INSERT, UPDATE of the top, COMMIT: 25 µs instead of 36 for one
publication, 0.8 of the time for 64; and at each statement this thread gives up the
interpreter lock and may have to wait for it). Whether an idempotency key is known is
found out by inserting it: INSERT OR IGNORE reports fewer rows than it was given. Then
the batch is rolled back and planned again with the database locked, each key looked up
first. The same is done when a unique index refuses the batch, which happens only if
somebody wrote to the file by hand. Where processes share the file, every batch is
planned with the database locked: that is when what others wrote is known (see `news`).

Invariants:

* Within a channel, times never fall with rising offsets, even if the wall clock was
  set back between two runs: what expires is always a prefix.
* More than ``size`` publications may be stored: they are trimmed some 64 at a time.
  Reads count from the top, so nobody sees them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from bisect import bisect_left
from collections.abc import Sequence

from service.core.model import Appended, Channel, Draft, Position, Publication
from service.core.ports import Committed
from service.stores.history_cache import FOREVER, milliseconds
from service.stores.sqlite.channel_state import ChannelState, ChannelStateCache
from service.stores.sqlite.news import FLAGS, PASSING, REMOVED, flags_of
from service.stores.sqlite.writer import BatchResult, QueuedAppend

__all__ = ["Log"]

IDEMPOTENCY_TTL = 300_000  # ms; what the server API documents

TRIMMED_ROWS = 1024  # count per transaction and channel

# Inserts of fewer rows have a statement each. The others take the next of `_SIZES`,
# whose last rows are NULL then: a prepared statement is kept for each size, and one of
# 256 rows takes 200 KB.
_EXACT = 32  # count
_SIZES = (*range(32, 64, 8), *range(64, 128, 16), *range(128, 257, 32))
_MOST = _SIZES[-1]  # rows of one statement
# A row that is refused undoes the transaction, not the statement alone: to undo a
# statement, SQLite copies each page before it changes it, into a temporary file.
_INSERT = "INSERT OR ROLLBACK"
_ROW = "(?,?,?,?,?,?,?)"
_KEY = "(?,?,?,?,?)"
_NO_POSITION = Position(0, "")
_NOT_STORED = Appended(_NO_POSITION, True)


def _rows(count: int) -> str:
    return "VALUES " + ",".join([_ROW] * count)


class _Batch:
    """The rows to write for a batch.

    Attributes:
        result: What to report once they are written.
        publications: Rows, flat.
        keys: Rows of idempotency keys, flat.
        keyed: Positions of the keys seen so far.
        news: Rows of the table ``news``, without their time.
        next_id: The id that comes after those of this batch.
        channels: The channels that get offsets.
    """

    __slots__ = (
        "channels",
        "keyed",
        "keys",
        "news",
        "next_id",
        "publications",
        "result",
    )

    def __init__(self, appends: Sequence[QueuedAppend]) -> None:
        self.result = BatchResult(appends)
        self.publications: list[object] = []
        self.keys: list[object] = []
        self.keyed: dict[tuple[Channel, str], Position] = {}
        self.news: list[tuple[object, ...]] = []
        self.next_id = 0
        self.channels: dict[Channel, ChannelState] = {}


class Log:
    """Appends to, and removes from, one database.

    Args:
        channels: The writer's.
    """

    def __init__(self, channels: ChannelStateCache) -> None:
        self._channels = channels
        self._inserts = {
            count: f"{_INSERT} INTO publications {_rows(count)}"
            for count in range(1, _EXACT)
        }
        for size in _SIZES:
            self._inserts[size] = (
                f"{_INSERT} INTO publications"
                f" SELECT * FROM ({_rows(size)}) WHERE column1 IS NOT NULL"
            )

    def commit(self, appends: Sequence[QueuedAppend], now: int) -> BatchResult:
        """Store a batch in its order, at *now* (Unix ms).

        Raises:
            sqlite3.Error: Nothing was stored, or (an I/O error at the very end) the
                outcome is unknown.
            Exception: One of the appends cannot be stored; nothing was.
        """
        try:
            if self._channels.news is None:
                with contextlib.suppress(sqlite3.IntegrityError):
                    self._channels.prepare()
                    batch = self._plan(appends, now, locked=False)
                    if self._write(batch, now, locked=False):
                        return batch.result
                self._channels.rollback()
            self._channels.begin()
            self._channels.prepare()
            batch = self._plan(appends, now, locked=True)
            if not self._write(batch, now, locked=True):
                raise AssertionError("a key that replaces another is inserted")
        except BaseException:
            self._channels.rollback()
            raise
        return batch.result

    def remove(self, channel: Channel) -> Position | None:
        """Delete a channel's publications; return its top, None if it has none."""
        with self._channels.transaction():
            found = self._channels.find(channel)
            if found is None:
                return None
            self._channels.delete(channel, found.id, found.top)
            self._channels.tell(REMOVED, channel, found.top, found.epoch)
            self._channels.execute(
                "UPDATE channels SET due = touched + meta_ttl WHERE id = ?",
                (found.id,),
            )
            cached = self._channels.states.get(channel)
            if cached is not None:
                cached.first = found.top + 1
            return Position(found.top, found.epoch)

    def probe(self) -> None:
        """Write something, to see whether writing works."""
        with self._channels.transaction():
            self._channels.execute("UPDATE meta SET serial = serial + 1")

    # Appending

    def _plan(
        self, appends: Sequence[QueuedAppend], now: int, *, locked: bool
    ) -> _Batch:
        batch = _Batch(appends)
        rows, channels = batch.publications, batch.channels
        states = self._channels.states
        outcome, fresh = batch.result.outcomes.append, batch.result.committed.append
        number = self._channels.next_id
        for channel, draft, history, _, _ in appends:
            key = draft.idempotency_key
            if key:
                first = self._find_key(batch, channel, key, now, search=locked)
                if first is not None:
                    outcome(Appended(first, False))
                    continue
            if not history.size:
                number = self._pass(batch, channel, draft, number, now)
                continue
            state = states.get(channel)
            if state is None:
                state = self._channels.add(channel, history)
            if state.history is not history and state.history != history:
                state.history = history
                state.changed = True
                state.due = now
            if draft.version:
                if state.has_version(draft):
                    outcome(Appended(self._skip(batch, state, key, now), False))
                    continue
                state.version = draft.version
                state.version_epoch = draft.version_epoch
                state.changed = True
            if state.first > state.top:  # the row may be due only when it expires
                state.changed = True
                state.due = now + milliseconds(history.ttl)
            offset = state.top = state.top + 1
            time = state.time = now if now > state.time else state.time
            data, info, tags = draft.data, draft.info, draft.tags
            rows += (number, state.id, offset, time, data, info, tags)
            if draft.delta or draft.urgent:
                self._flag(batch, channel, draft, number)
            number += 1
            channels[channel] = state
            position = Position(offset, state.epoch)
            fresh(
                Committed(
                    channel,
                    Publication(offset, data, info, tags, time),
                    state.epoch,
                    draft.delta,
                    draft.urgent,
                )
            )
            outcome(Appended(position, True))
            if key:
                self._add_key(batch, channel, key, position, now)
        batch.next_id = number
        return batch

    def _pass(
        self, batch: _Batch, channel: Channel, draft: Draft, number: int, now: int
    ) -> int:
        """Plan what is not kept; return the next id."""
        data, info, tags = draft.data, draft.info, draft.tags
        batch.result.committed.append(
            Committed(
                channel,
                Publication(0, data, info, tags),
                "",
                draft.delta,
                draft.urgent,
            )
        )
        batch.result.outcomes.append(_NOT_STORED)
        if draft.idempotency_key:
            self._add_key(batch, channel, draft.idempotency_key, _NO_POSITION, now)
        if self._channels.news is None:
            return number
        flags = flags_of(draft)
        batch.news.append((number, PASSING, channel, flags, data, info, tags))
        return number + 1

    def _flag(self, batch: _Batch, channel: Channel, draft: Draft, number: int) -> None:
        """Let other processes know of the flags of the publication *number*."""
        if self._channels.news is not None:
            row = (number, FLAGS, channel, flags_of(draft), "", None, None)
            batch.news.append(row)

    def _find_key(
        self, batch: _Batch, channel: Channel, key: str, now: int, *, search: bool
    ) -> Position | None:
        """Return where *key* was used, if that is known.

        Without *search* only this batch is looked at: if the database has the key, that
        is seen when it is inserted.
        """
        first = batch.keyed.get((channel, key))
        if first is None and search:
            row = self._channels.execute(
                "SELECT offset, epoch FROM idempotency"
                " WHERE channel = ? AND key = ? AND expires > ?",
                (channel, key, now),
            ).fetchone()
            if row is not None:
                first = batch.keyed[channel, key] = Position(*row)
        return first

    def _skip(self, batch: _Batch, state: ChannelState, key: str, now: int) -> Position:
        """Return the position of a draft that is skipped for its version."""
        first = None
        if key:  # not going to be inserted, so this is the time to ask for it
            first = self._find_key(batch, state.name, key, now, search=True)
        return first or Position(state.top, state.epoch)

    def _add_key(
        self, batch: _Batch, channel: Channel, key: str, position: Position, now: int
    ) -> None:
        batch.keyed[channel, key] = position
        batch.keys += (channel, key, *position, now + IDEMPOTENCY_TTL)

    def _write(self, batch: _Batch, now: int, *, locked: bool) -> bool:
        """Write *batch*; return False when one of its keys is known already."""
        count = len(batch.publications) // 7
        changed = [s for s in batch.channels.values() if s.changed or s.new]
        trims = []
        for channel, state in batch.channels.items():
            size = batch.result.sizes[channel] = state.history.size
            if state.top - state.first >= size + max(64, size >> 3):
                trims.append(state)
        if not (count or batch.keys or batch.news):
            if locked:
                self._channels.commit()
            return True
        batch.result.stored = True
        single = 0 < count <= _MOST and not (batch.keys or changed or trims)
        if not (single or locked):
            self._channels.execute("BEGIN IMMEDIATE")
        self._insert(batch.publications, count)
        for row in batch.news:
            self._channels.insert_news(row, now)
        self._channels.next_id = batch.next_id  # before trims, which may tell
        if batch.keys and not self._insert_keys(batch.keys, replace=locked):
            return False
        for state in changed:
            self._save(state)
        for state in trims:
            bound = min(state.top - state.history.size, state.first + TRIMMED_ROWS - 1)
            self._channels.delete(state.name, state.id, bound)
            state.first = bound + 1
        if locked or not single:
            self._channels.commit()
        return True

    def _insert(self, rows: list[object], count: int) -> None:
        for done in range(0, count, _MOST):
            part = rows[7 * done : 7 * (done + _MOST)]
            size = len(part) // 7
            if size >= _EXACT:
                size = _SIZES[bisect_left(_SIZES, size)]
                part += [None] * (7 * size - len(part))
            self._channels.execute(self._inserts[size], part)

    def _insert_keys(self, keys: list[object], *, replace: bool) -> bool:
        # One statement for each size below 8, so that the cache of prepared ones
        # is not washed out; 8 at a time above.
        count = len(keys) // 5
        done = 0
        while done < count:
            part = min(count - done, 8)
            found = self._channels.execute(
                f"INSERT OR {'REPLACE' if replace else 'IGNORE'} INTO idempotency"
                " (channel, key, offset, epoch, expires) VALUES "
                + ",".join([_KEY] * part),
                keys[5 * done : 5 * (done + part)],
            )
            if found.rowcount != part:
                return False
            done += part
        return True

    def _save(self, state: ChannelState) -> None:
        values = (*state.times, state.due, state.version, state.version_epoch)
        if state.new:
            self._channels.execute(
                "INSERT INTO channels (id, name, epoch, top, touched,"
                " ttl, meta_ttl, due, version, version_epoch)"
                " VALUES (?, ?, ?, 0, 0, ?, ?, ?, ?, ?)",
                (state.id, state.name, state.epoch, *values),
            )
        else:
            self._channels.execute(
                "UPDATE channels SET ttl = ?, meta_ttl = ?, due = min(due, ?),"
                " version = ?, version_epoch = ? WHERE id = ?",
                (*values, state.id),
            )
        state.new = state.changed = False
        state.due = FOREVER

"""The log in SQLite: a batch is one transaction. Blocks; the writer's thread only.

Appending is optimistic. Tops are cached in memory, and the usual batch is *one*
statement, which SQLite runs as a transaction of its own (measured against BEGIN,
INSERT, UPDATE of the top, COMMIT: 25 µs instead of 36 for one publication, 0.8 of the
time for 64; and each statement is a moment in which this thread gives up the
interpreter lock and may wait for it). If another connection wrote in between, the
batch is refused as a whole (see `book`; and INSERT OR IGNORE reports fewer rows than
it was given if an idempotency key is known), and it is planned again with the
database locked, when nothing can come in between.

Invariants:

* Within a channel, times never fall with rising offsets, even if the wall clock was
  set back between two runs: what expires is always a prefix.
* More than ``size`` publications may be stored: they are trimmed some 64 at a time.
  Reads count from the top, so nobody sees them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence

from service.core.model import Appended, Channel, Position, Publication
from service.core.ports import Committed
from service.stores.history_cache import FOREVER, milliseconds
from service.stores.sqlite.batch import Commit, Entry, Plan, State
from service.stores.sqlite.channel_state import ChannelStateCache

__all__ = ["Log"]

IDEMPOTENCY_TTL = 300_000  # ms; what the server API documents

TRIMMED_ROWS = 1024  # count per transaction and channel

# Inserts of fewer rows have a statement each, others are put together: a prepared
# statement is kept for each size, and one of 256 rows takes 200 KB.
_EXACT = 32  # count
_ROW = "(?,?,?,?,?,?,?)"
_KEY = "(?,?,?,?,?)"
_NOWHERE = Position(0, "")
_PASSED = Appended(_NOWHERE, True)


class Log:
    """Appends to, and removes from, one database.

    Args:
        book: Of the writer.
    """

    def __init__(self, book: ChannelStateCache) -> None:
        self._book = book
        self._execute = book.execute
        self._inserts = {
            count: "INSERT INTO publications SELECT * FROM (VALUES "
            + ",".join([_ROW] * count)
            + ") WHERE (SELECT serial FROM meta WHERE id = 1) = ?"
            for count in (*range(1, _EXACT), 32, 64, 128, 256)
        }

    def commit(self, entries: Sequence[Entry], now: int) -> Commit:
        """Store a batch in its order, at *now* (Unix ms).

        Raises:
            sqlite3.Error: Nothing was stored, or (an I/O error at the very end) the
                outcome is unknown.
            Exception: One of the entries cannot be stored; nothing was.
        """
        try:
            self._book.prepare()
            with contextlib.suppress(sqlite3.IntegrityError):
                plan = self._plan(entries, now, locked=False)
                if self._write(plan, locked=False):
                    return plan.commit
            # Another connection wrote, or a key is known.
            self._book.rollback()
            self._execute("BEGIN IMMEDIATE")
            self._book.refresh()
            plan = self._plan(entries, now, locked=True)
            if not self._write(plan, locked=True):
                raise AssertionError("nobody else can write while we hold the lock")
        except BaseException:
            self._book.rollback()
            raise
        return plan.commit

    def remove(self, channel: Channel) -> Position | None:
        """Delete a channel's publications; return its top, None if it has none."""
        with self._book.transaction():
            found = self._book.find(channel)
            if found is None:
                return None
            self._book.delete(found.id, found.top)
            self._execute(
                "UPDATE channels SET due = touched + meta_ttl WHERE id = ?",
                (found.id,),
            )
            cached = self._book.states.get(channel)
            if cached is not None:
                cached.first = found.top + 1
            return Position(found.top, found.epoch)

    def probe(self) -> None:
        """Write something, to see whether writing works."""
        with self._book.transaction():
            self._book.bump()

    # Appending

    def _plan(self, entries: Sequence[Entry], now: int, *, locked: bool) -> Plan:
        plan = Plan(entries)
        rows, channels, states = plan.rows, plan.channels, self._book.states
        outcome, fresh = plan.commit.outcomes.append, plan.commit.committed.append
        number = self._book.next_id
        for channel, draft, history, _, _ in entries:
            key = draft.idempotency_key
            if key:
                first = self._find(plan, channel, key, now, search=locked)
                if first is not None:
                    outcome(Appended(first, False))
                    continue
            if not history.size:
                fresh(
                    Committed(
                        channel,
                        Publication(0, draft.data, draft.info, draft.tags),
                        "",
                    )
                )
                outcome(_PASSED)
                if key:
                    self._keep(plan, channel, key, _NOWHERE, now)
                continue
            state = states.get(channel)
            if state is None:
                state = self._book.load(channel, history)
            if state.history is not history and state.history != history:
                state.history = history
                state.changed = True
                state.due = now
            if draft.version:
                if state.has_version(draft):
                    outcome(Appended(self._skip(plan, state, key, now), False))
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
            number += 1
            channels[channel] = state
            position = Position(offset, state.epoch)
            fresh(
                Committed(
                    channel, Publication(offset, data, info, tags, time), state.epoch
                )
            )
            outcome(Appended(position, True))
            if key:
                self._keep(plan, channel, key, position, now)
        return plan

    def _find(
        self, plan: Plan, channel: Channel, key: str, now: int, *, search: bool
    ) -> Position | None:
        """Return where *key* was used, if that is known.

        Without *search* only this batch is looked at: that the database has the key
        is seen when it is inserted.
        """
        first = plan.keyed.get((channel, key))
        if first is None and search:
            row = self._execute(
                "SELECT offset, epoch FROM idempotency"
                " WHERE channel = ? AND key = ? AND expires > ?",
                (channel, key, now),
            ).fetchone()
            if row is not None:
                first = plan.keyed[channel, key] = Position(*row)
        return first

    def _skip(self, plan: Plan, state: State, key: str, now: int) -> Position:
        """Return the position of a draft that is skipped for its version."""
        first = None
        if key:  # not going to be inserted, so this is the time to ask for it
            first = self._find(plan, state.name, key, now, search=True)
        return first or Position(state.top, state.epoch)

    def _keep(
        self, plan: Plan, channel: Channel, key: str, position: Position, now: int
    ) -> None:
        plan.keyed[channel, key] = position
        plan.keys += (channel, key, *position, now + IDEMPOTENCY_TTL)

    def _write(self, plan: Plan, *, locked: bool) -> bool:
        """Write *plan*; return False when the database was not as expected."""
        count = len(plan.rows) // 7
        changed = [s for s in plan.channels.values() if s.changed or s.new]
        trims = []
        for channel, state in plan.channels.items():
            size = plan.commit.sizes[channel] = state.history.size
            if state.top - state.first >= size + max(64, size >> 3):
                trims.append(state)
        alone = count in self._inserts and not (plan.keys or changed or trims)
        if not count and not plan.keys:
            if locked:
                self._execute("COMMIT")
            return True
        plan.commit.stored = True
        if not (alone or locked):
            self._execute("BEGIN IMMEDIATE")
        if count and not self._insert(plan.rows, count):
            return False
        if plan.keys and not self._insert_keys(plan.keys, replace=locked):
            return False
        for state in changed:
            self._save(state)
        for state in trims:
            bound = min(state.top - state.history.size, state.first + TRIMMED_ROWS - 1)
            self._book.delete(state.id, bound)
            state.first = bound + 1
        if not alone or locked:
            self._execute("COMMIT")
        self._book.next_id += count
        return True

    def _insert(self, rows: list[object], count: int) -> bool:
        statement = self._inserts.get(count)
        if statement is not None:
            rows.append(self._book.serial)
            return self._execute(statement, rows).rowcount == count
        done = 0
        while done < count:
            part = count - done
            if part >= _EXACT:
                part = min(1 << part.bit_length() - 1, 256)
            values = rows[7 * done : 7 * (done + part)]
            values.append(self._book.serial)
            if self._execute(self._inserts[part], values).rowcount != part:
                return False
            done += part
        return True

    def _insert_keys(self, keys: list[object], *, replace: bool) -> bool:
        # One statement for each size below 8, so that the cache of prepared ones
        # is not washed out; 8 at a time above.
        count = len(keys) // 5
        done = 0
        while done < count:
            part = min(count - done, 8)
            found = self._execute(
                f"INSERT OR {'REPLACE' if replace else 'IGNORE'} INTO idempotency"
                " (channel, key, offset, epoch, expires) VALUES "
                + ",".join([_KEY] * part),
                keys[5 * done : 5 * (done + part)],
            )
            if found.rowcount != part:
                return False
            done += part
        return True

    def _save(self, state: State) -> None:
        values = (*state.times, state.due, state.version, state.version_epoch)
        if state.new:
            self._execute(
                "INSERT INTO channels (id, name, epoch, top, touched,"
                " ttl, meta_ttl, due, version, version_epoch)"
                " VALUES (?, ?, ?, 0, 0, ?, ?, ?, ?, ?)",
                (state.id, state.name, state.epoch, *values),
            )
        else:
            self._execute(
                "UPDATE channels SET ttl = ?, meta_ttl = ?, due = min(due, ?),"
                " version = ?, version_epoch = ? WHERE id = ?",
                (*values, state.id),
            )
        state.new = state.changed = False
        state.due = FOREVER

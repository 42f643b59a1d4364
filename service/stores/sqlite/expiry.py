"""Deletes what has expired and blanks what must be erased, in steps between commits.

A channel's row has the time at which it must be looked at next (``due``): when its
oldest publication expires, or, if none is stored, its metadata. An append changes that
time only when its publication is the first one stored. So a sweep costs what it
deletes, however many channels there are.

Erasing keeps offsets, times and ids, so the cached channel states stay true. At its end
the whole file is rewritten from what is left and the write-ahead log is emptied, since
blanking a row is not enough: SQLite copies rows from page to page when it balances a
tree, and `secure_delete` does not overwrite the copies that it leaves behind. Only
backups that were made before still have the texts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import NamedTuple

import structlog

from service.core.model import Channel
from service.core.ports import Clock, Timer
from service.stores.history_cache import milliseconds
from service.stores.sqlite.channel_state import ChannelStateCache
from service.stores.sqlite.news import KEPT, SWEPT
from service.stores.sqlite.schema import reason, truncate_log
from service.stores.sqlite.state import StateTable
from service.stores.sqlite.writer import Job

__all__ = ["Blanked", "Eraser", "Expiry", "Sweeper", "Swept"]

SWEPT_CHANNELS = 64  # count per step, which is one transaction of some milliseconds
SWEPT_ROWS = 512  # count per step
EXAMINED = 256  # publications per step of erasing; large ones are read, so not many

_log = structlog.get_logger(__name__)


class Swept(NamedTuple):
    """The result of one step of the sweep.

    Attributes:
        more: There is more to do at once.
        expired: Channels whose metadata was deleted.
    """

    more: bool
    expired: list[Channel]


class Expiry:
    """Deletes what has expired in one database. On the writer's thread.

    Args:
        channels: The writer's.
        state_table: On the same connection.
    """

    def __init__(self, channels: ChannelStateCache, state_table: StateTable) -> None:
        self._channels = channels
        self._state_table = state_table

    def step(self, now: int) -> Swept:
        """Delete some of what has expired at *now* (Unix ms)."""
        expired: list[Channel] = []
        with self._channels.transaction():
            more = self._delete_keys(now)
            more = self._delete_news(now) or more
            more = self._state_table.delete_expired(now, SWEPT_ROWS) or more
            rows = self._channels.execute(
                "SELECT id, name, epoch, ttl FROM channels WHERE due <= ?"
                " ORDER BY due LIMIT ?",
                (now, SWEPT_CHANNELS),
            ).fetchall()
            left = SWEPT_ROWS
            for channel_id, name, epoch, ttl in rows:
                left -= self._delete_publications(name, channel_id, now - ttl, left)
                if not left:
                    break
                due = self._due(channel_id)
                if due > now:
                    self._channels.execute(
                        "UPDATE channels SET due = ? WHERE id = ?", (due, channel_id)
                    )
                else:
                    self._channels.expire(name, channel_id, epoch)
                    expired.append(name)
        return Swept(more or not left or len(rows) == SWEPT_CHANNELS, expired)

    def _delete_keys(self, now: int) -> bool:
        """Delete expired idempotency keys; return whether there may be more."""
        # All live equally long, so they expire in the order of their ids.
        rows = self._channels.execute(
            "SELECT id, expires FROM idempotency ORDER BY id LIMIT ?", (SWEPT_ROWS,)
        ).fetchall()
        count = 0
        while count < len(rows) and rows[count][1] <= now:
            count += 1
        if count:
            self._channels.execute(
                "DELETE FROM idempotency WHERE id <= ?", (rows[count - 1][0],)
            )
        return count == SWEPT_ROWS

    def _delete_news(self, now: int) -> bool:
        """Delete news that everybody has heard; return whether there may be more."""
        rows = self._channels.execute(
            "SELECT id, time FROM news ORDER BY id LIMIT ?", (SWEPT_ROWS,)
        ).fetchall()
        count = 0
        while count < len(rows) and rows[count][1] <= now - milliseconds(KEPT):
            count += 1
        if count:
            self._channels.execute(
                "DELETE FROM news WHERE id <= ?", (rows[count - 1][0],)
            )
        return count == SWEPT_ROWS

    def _delete_publications(
        self, channel: Channel, channel_id: int, cutoff: int, limit: int
    ) -> int:
        """Delete up to *limit* of the oldest publications; return how many."""
        rows = self._channels.execute(
            "SELECT offset, time FROM publications WHERE channel_id = ?"
            " ORDER BY offset LIMIT ?",
            (channel_id, limit),
        ).fetchall()
        count = 0
        while count < len(rows) and rows[count][1] <= cutoff:
            count += 1
        if count:
            last = rows[count - 1][0]
            self._channels.delete(channel, channel_id, last)
            self._channels.tell(SWEPT, channel)
            state = self._channels.states.get(channel)
            if state is not None:
                state.first = last + 1
        return count

    def _due(self, channel_id: int) -> int:
        """Return when the next of a channel's rows expires, Unix milliseconds."""
        due: int
        (due,) = self._channels.execute(
            "SELECT coalesce((SELECT time FROM publications WHERE channel_id = c.id"
            " ORDER BY offset LIMIT 1) + ttl, touched + meta_ttl)"
            " FROM channels AS c WHERE id = ?",
            (channel_id,),
        ).fetchone()
        return due


class Sweeper:
    """Runs the sweep at regular intervals. Event loop only.

    Args:
        clock: Calls it.
        interval: Seconds from one sweep to the next.
        submit: Queues a job on the writer's thread.
        step: Makes one step there.
        expired: Told of the channels whose metadata was deleted.
    """

    def __init__(
        self,
        clock: Clock,
        interval: float,
        submit: Callable[[Job[Swept]], None],
        step: Callable[[], Swept],
        expired: Callable[[list[Channel]], None],
    ) -> None:
        self._clock = clock
        self._interval = interval
        self._submit = submit
        self._step = step
        self._expired = expired
        self._busy = False
        self._stopped = False
        self._timer = self._schedule()

    def stop(self) -> None:
        """Begin no further step."""
        self._stopped = True
        self._timer.cancel()

    def _schedule(self) -> Timer:
        return self._clock.call_at(self._clock.now() + self._interval, self._sweep)

    def _sweep(self) -> None:
        self._timer = self._schedule()
        if not self._busy:
            self._submit_step()

    def _submit_step(self) -> None:
        self._busy = not self._stopped
        if self._busy:
            self._submit(Job(self._step, self._step_done))

    def _step_done(self, swept: Swept | None, error: BaseException | None) -> None:
        self._busy = False
        if swept is None:
            _log.warning("the sweep failed", reason=reason(error))
            return
        if swept.expired:
            self._expired(swept.expired)
        if swept.more:
            self._submit_step()


class Blanked(NamedTuple):
    """The result of one step of erasing.

    Attributes:
        last: The id up to which everything was looked at.
        blanked: Count of publications.
        channels: Where they are.
    """

    last: int
    blanked: int
    channels: list[Channel]


class Eraser:
    """Blanks publications. On the writer's thread.

    Args:
        connection: In autocommit mode.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.use(connection)
        self._blanked = 0  # count of erasures that have blanked all they had to
        self._rewritten = 0  # how many of them the last rewrite came after

    def use(self, connection: sqlite3.Connection) -> None:
        """Go on with another connection to the same file."""
        self._execute = connection.execute

    def newest(self) -> int:
        """Return the id of the newest publication; all later ones have higher ids."""
        newest: int
        (newest,) = self._execute(
            "SELECT coalesce(max(id), 0) FROM publications"
        ).fetchone()
        return newest

    def step(self, info: str, after: int, bound: int) -> Blanked:
        """Blank those whose info begins with *info*, of some above the id *after*.

        Args:
            info: See the port.
            after: The id up to which everything was looked at.
            bound: The highest id to look at.
        """
        (last,) = self._execute(
            "SELECT coalesce(max(id), ?) FROM (SELECT id FROM publications"
            " WHERE id > ? AND id <= ? ORDER BY id LIMIT ?)",
            (bound, after, bound, EXAMINED),
        ).fetchone()
        found = self._execute(
            "UPDATE publications SET data = 'null', info = NULL, tags = NULL"
            " WHERE id > ? AND id <= ? AND substr(info, 1, ?) = ?"
            " RETURNING channel_id",
            (after, last, len(info), info),
        ).fetchall()
        names = [
            self._execute("SELECT name FROM channels WHERE id = ?", row).fetchone()
            for row in set(found)
        ]
        return Blanked(last, len(found), [Channel(name) for (name,) in names])

    def end(self) -> int:
        """Note that an erasure has blanked all it had to; return its number."""
        self._blanked += 1
        return self._blanked

    def rewrite(self, number: int) -> None:
        """Rewrite the file without what was deleted, unless that was done since.

        Appends wait meanwhile; reads do not.

        Args:
            number: What `end` returned. Erasures that end while the file is being
                rewritten share one further rewrite.

        Raises:
            sqlite3.Error: The file or its log may still have deleted texts.
        """
        if number > self._rewritten:
            covered = self._blanked
            self._execute("VACUUM")
            if not truncate_log(self._execute):
                raise sqlite3.OperationalError(
                    "another process reads the store, so its log cannot be emptied yet"
                )
            self._rewritten = covered

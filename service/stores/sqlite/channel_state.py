"""Cache of what the next append to each channel must know, for the writer's thread.

Invariant: the cached states and next ids are what the database holds, inside a
transaction of the writer. Where the file is one process's (see `schema`) that is always
so. Where processes share it, each transaction begins by forgetting what others have
changed (see `news`), and no statement writes to the log outside one. After any failure
everything is forgotten and read again.

Writers of several processes wait for each other here and not in SQLite, whose own waits
grow to 100 ms: one that commits without a pause would keep the others out.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar
from zlib import crc32

from service.core.model import Channel, Draft
from service.core.ports import History
from service.stores.history_cache import FOREVER, milliseconds
from service.stores.sqlite.news import EXPIRED, FREED, News
from service.stores.sqlite.schema import is_locked, new_epoch
from service.stores.sqlite.space import Space

__all__ = [
    "CHANNELS",
    "SLOTS",
    "ChannelState",
    "ChannelStateCache",
    "slot_of",
    "unpublished_epoch",
]

CHANNELS = 65_536  # count; states kept in memory; above, the older half is dropped

# A channel that was never published to has the epoch of its slot. When metadata
# expires, only that slot gets a new one: with a single epoch for all, each channel
# that expires would cost every unpublished channel its epoch.
SLOTS = 65_536  # count

# Between two tries to lock the database; transactions take some 0.1 to 5 ms.
SHORTEST_PAUSE = 0.0002  # s
LONGEST_PAUSE = 0.002  # s

T = TypeVar("T")

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
        (slot_of(channel),),
    ).fetchone()
    return epoch


def slot_of(channel: Channel) -> int:
    """Return the slot of a channel.

    Raises:
        UnicodeEncodeError: It has no UTF-8.
    """
    return crc32(channel.encode()) % SLOTS


class ChannelState:
    """State of a channel, as the next append must know it.

    Attributes:
        id: Of the channel's row.
        name: The channel.
        epoch: Of its stream.
        history: The settings whose times the row has.
        top: The newest offset.
        first: The oldest offset stored; ``top + 1`` if none is.
        time: Of the newest publication, Unix milliseconds.
        version: The highest of `version_epoch` that was published, 0 for none.
        version_epoch: What `version` belongs to.
        new: The channel has no row yet.
        changed: The row must be updated.
        due: The latest time at which the sweep must look at the channel, Unix
            milliseconds; means something only while `new` or `changed`.
    """

    __slots__ = (
        "changed",
        "due",
        "epoch",
        "first",
        "history",
        "id",
        "name",
        "new",
        "time",
        "top",
        "version",
        "version_epoch",
    )

    def __init__(
        self, number: int, name: Channel, epoch: str, history: History
    ) -> None:
        self.id = number
        self.name = name
        self.epoch = epoch
        self.history = history
        self.top = 0
        self.first = 1
        self.time = 0
        self.version = 0
        self.version_epoch = ""
        self.new = True
        self.changed = False
        self.due = FOREVER

    @property
    def times(self) -> tuple[int, int]:
        """The ttl and meta_ttl of `history`, in milliseconds."""
        return milliseconds(self.history.ttl), milliseconds(self.history.meta_ttl)

    def has_version(self, draft: Draft) -> bool:
        """Return whether *draft* is no newer than what was published."""
        return (
            draft.version <= self.version and draft.version_epoch == self.version_epoch
        )


class ChannelStateCache:
    """The writer's connection, and the cached states of the channels it writes to.

    Args:
        connection: In autocommit mode; nobody else may use it for writing.
        rng: Makes epochs.
        space: Told of what is deleted, and of the ends of transactions.
        patience: Seconds that a shared store waits for another process's transaction.

    Attributes:
        adding: Told of a channel before metadata of it is written.
        news: What other processes do; None where none has the file open.
        patience: As given.
        execute: Of the connection.
        next_id: Of a publication; 0 while nothing is known.
        next_channel: Id of a new channel.
        states: By channel.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        rng: random.Random,
        space: Space,
        patience: float = 1.0,
    ) -> None:
        self.news: News | None = None
        self.patience = patience
        self._connection = connection
        self._rng = rng
        self._space = space
        self.adding: Callable[[Channel], None] | None = None
        self.execute = connection.execute
        self.states: dict[Channel, ChannelState] = {}
        self.next_id = 0
        self.next_channel = 0

    def use(self, connection: sqlite3.Connection) -> None:
        """Go on with another connection to the same file."""
        self._connection = connection
        self.execute = connection.execute
        self.states.clear()
        self.next_id = 0
        if self.news is not None:
            self.news.use(connection)
            self.share(self.news)

    def share(self, news: News) -> None:
        """Begin to write beside other processes."""
        self.news = news
        self.execute("PRAGMA busy_timeout = 0")  # `patiently` waits instead

    def forget(self, channels: Iterable[Channel] | None) -> None:
        """Forget channels that other processes have changed; None for all."""
        self.next_id = 0
        if channels is None:
            self.states.clear()
            return
        for channel in channels:
            self.states.pop(channel, None)

    def prepare(self) -> None:
        """Read the next ids if they are unknown, and drop states if there are many."""
        if not self.next_id:
            self.next_id, self.next_channel = self.execute(
                "SELECT"
                " max(last_id, coalesce((SELECT max(id) FROM publications), 0),"
                " coalesce((SELECT max(id) FROM news), 0)) + 1,"
                " (SELECT coalesce(max(id), 0) + 1 FROM channels)"
                " FROM meta WHERE id = 1"
            ).fetchone()
        # Never within a batch: it relies on the states that it has changed.
        if len(self.states) > CHANNELS:
            for name in list(islice(self.states, CHANNELS // 2)):
                del self.states[name]

    def add(self, channel: Channel, history: History) -> ChannelState:
        """Put a channel's state, or that of a new channel, into the cache."""
        state = self.find(channel)
        if state is None:
            if self.adding is not None:
                self.adding(channel)
            epoch = unpublished_epoch(self._connection, channel)
            state = ChannelState(self.next_channel, channel, epoch, history)
            self.next_channel += 1
        elif state.history[1:] != history[1:]:
            state.changed = True
            state.due = 0  # at once: it may expire sooner than its row says
        state.history = history
        self.states[channel] = state
        return state

    def find(self, channel: Channel) -> ChannelState | None:
        """Read a channel's state from the database; None if it has no metadata."""
        row = self.execute(_FIND, (channel,)).fetchone()
        if row is None:
            return None
        history = History(0, row[4] / 1000, row[5] / 1000)
        state = ChannelState(row[0], channel, row[1], history)
        state.new = False
        state.version, state.version_epoch = row[6], row[7]
        state.top = max(row[2], row[8] or 0)
        state.time = max(row[3], row[9] or 0)
        state.first = row[10] or state.top + 1
        return state

    def delete(self, channel: Channel, channel_id: int, bound: int) -> None:
        """Delete a channel's publications up to offset *bound*."""
        freed = self._space.deleting(channel, channel_id, bound)
        if freed:
            self.tell(FREED, *freed)
        self.execute(
            "DELETE FROM publications WHERE channel_id = ? AND offset <= ?",
            (channel_id, bound),
        )

    def expire(self, channel: Channel, channel_id: int, epoch: str) -> None:
        """Delete a channel's metadata. Its offsets will restart, in another epoch."""
        self.execute("DELETE FROM channels WHERE id = ?", (channel_id,))
        self.states.pop(channel, None)
        self.tell(EXPIRED, channel)
        fresh = epoch
        while fresh == epoch:
            fresh = new_epoch(self._rng)
        self.execute(
            "INSERT OR REPLACE INTO generations VALUES (?, ?)",
            (slot_of(channel), fresh),
        )

    def tell(self, kind: str, channel: str, number: int = 0, data: str = "") -> None:
        """Let other processes know of a change in this transaction."""
        if self.news is not None:
            self.prepare()
            self.insert_news(
                (self.next_id, kind, channel, number, data, None, None),
                self.news.wall(),
            )
            self.next_id += 1

    def insert_news(self, row: tuple[object, ...], now: int) -> None:
        """Write a row of the table ``news``, as of *now* (Unix ms)."""
        self.execute("INSERT INTO news VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, now))

    def begin(self) -> None:
        """Lock the database, and forget what other processes have changed.

        Raises:
            sqlite3.Error: It could not be locked, or not in time.
        """
        if self.news is None:
            self.execute("BEGIN IMMEDIATE")
            return
        self.patiently(lambda: self.execute("BEGIN IMMEDIATE"))
        self.news.catch_up()

    def commit(self) -> None:
        """Commit the transaction."""
        self.execute("COMMIT")
        if self.news is not None and self.next_id:
            self.news.passed(self.next_id - 1)

    def patiently(self, run: Callable[[], T]) -> T:
        """Do something again while another process of this store has locked it.

        Args:
            run: Does all or nothing.

        Raises:
            sqlite3.Error: It failed, or was locked for too long.
        """
        if self.news is None:
            return run()
        end = time.monotonic() + self.patience
        pause = SHORTEST_PAUSE
        while True:
            try:
                return run()
            except sqlite3.OperationalError as error:
                if not is_locked(error) or time.monotonic() >= end:
                    raise
            time.sleep(pause * (0.5 + random.random() / 2))
            pause = min(2 * pause, LONGEST_PAUSE)

    def waiting(self, run: Callable[[], None]) -> None:
        """Do what is several transactions; each waits for those of other processes."""
        self.execute(f"PRAGMA busy_timeout = {round(1000 * self.patience)}")
        try:
            run()
        finally:
            self.execute("PRAGMA busy_timeout = 0")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Lock the database; commit at the end, or undo everything."""
        try:
            self.begin()
            yield
            self.commit()
            self._space.commit()
        except BaseException:
            self.rollback()
            raise

    def rollback(self) -> None:
        """End a transaction that failed, and forget all that may not be true now."""
        self.states.clear()
        self.next_id = 0
        self._space.rollback()
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self.execute("ROLLBACK")

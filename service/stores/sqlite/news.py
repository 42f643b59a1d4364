"""News of a shared SQLite store: what other processes have committed to it.

Publications have ids in the order of their commits, over all channels: the global key.
Rows of the table ``news`` have ids of the same sequence, for what leaves no
publication: a publication without history, a removal, an erasure, an expiry. A row
with a publication's id has that publication's flags, which are stored nowhere else.
Rows are kept for `KEPT` seconds.

A process remembers up to which id it has seen everything. The writer's thread looks
before each transaction of its own, inside it, and when it has nothing to do: then
``PRAGMA data_version`` says whether another connection has committed anything, which
costs some microseconds. It looks every `ACTIVE` seconds for `CALM` after there was
something, then less often, down to every `IDLE` seconds.

Invariants:

* Every id above the bookmark that is not of our own commits is told, once, in its
  order, and before whatever this process commits later. For ids are given inside
  transactions that hold the write lock, and a transaction of ours begins by reading all
  that others committed before it.
* The bookmark moves past ids of our own only after their commit. If nobody knows
  whether that took place, the rows are found here and told: a subscriber drops what it
  has.
* What is told is read from one snapshot: a row of ``news`` never overtakes a
  publication with a lower id.
* A channel state is used for an append only if no other process has written to the
  channel since it was read (`forget` is called inside the transaction, before).

Interleavings that could break them, each a test in tests/stores/sqlite/test_news.py:
another process commits between two of our commits; between our look and our
transaction; our transaction is rolled back after its look, and another process takes
the ids that it would have given; the oldest unread rows were deleted before we looked;
a channel expires and another process starts it anew; this process stood still for
longer than rows are kept.

A notice names a topic on which others may have written something to other tables.

Bounds: `ROWS` rows or `BYTES` of payloads are told at once, and nothing is read while
`UNREAD` of those wait for the event loop, except before a commit of our own. Who is
more than `BACKLOG` ids behind, or was not here for half of `KEPT`, is told only the
newest publication of each channel, which shows the gap, and that everything cached is
out of date; publications without history are lost to it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, NamedTuple

from service.core.model import Channel, Draft, Position, Publication, RawJson
from service.core.ports import Committed
from service.stores.sqlite.schema import snapshot

__all__ = [
    "BLANKED",
    "EXPIRED",
    "FLAGS",
    "FREED",
    "KEPT",
    "NOTICE",
    "PASSING",
    "REMOVED",
    "SWEPT",
    "News",
    "Told",
    "flags_of",
]

ACTIVE = 0.002  # s
IDLE = 0.02  # s
CALM = 0.5  # s
GROWTH = 1.25  # of the time between two looks

KEPT = 60.0  # s
ROWS = 512  # count
BYTES = 1024 * 1024
BACKLOG = 8192  # ids
UNREAD = 4  # reports

_PUBLICATIONS = (
    "SELECT p.id, c.name, c.epoch, p.offset, p.data, p.info, p.tags, p.time"
    " FROM publications AS p JOIN channels AS c ON c.id = p.channel_id"
    " WHERE p.id > ? ORDER BY p.id LIMIT ?"
)
_NEWEST = (
    "SELECT p.id, c.name, c.epoch, p.offset, p.data, p.info, p.tags, p.time"
    " FROM publications AS p JOIN channels AS c ON c.id = p.channel_id"
    " WHERE p.id IN"
    " (SELECT max(id) FROM publications WHERE id > ? GROUP BY channel_id)"
)
_NEWS = (
    "SELECT id, kind, channel, number, data, info, tags FROM news"
    " WHERE id > ? ORDER BY id LIMIT ?"
)
_LAST = (
    "SELECT max(last_id, coalesce((SELECT max(id) FROM publications), 0),"
    " coalesce((SELECT max(id) FROM news), 0)) FROM meta WHERE id = 1"
)

_DELTA, _URGENT = 1, 2

# Kinds of rows, and what `number` is.
PASSING = "passing"  # a publication without history; its flags
FLAGS = "flags"  # of the publication with this id
REMOVED = "removed"  # the top; `data` is the epoch
BLANKED = "blanked"
EXPIRED = "expired"
SWEPT = "swept"  # the oldest publications of the channel were deleted
NOTICE = "notice"  # `channel` is a topic
FREED = "freed"  # bytes; `channel` is a namespace


def flags_of(draft: Draft) -> int:
    """Return the number that stands for the flags of a publication."""
    return _DELTA * draft.delta + _URGENT * draft.urgent


class Told:
    """What other processes have committed, in parts.

    Attributes:
        committed: Publications, in the order of their commits.
        removed: The tops of channels whose publications were removed.
        blanked: Channels with erased publications.
        expired: Channels whose metadata was deleted.
        notices: Topics.
        lost: Everything cached may be out of date.
    """

    __slots__ = ("blanked", "committed", "expired", "lost", "notices", "removed")

    def __init__(self) -> None:
        self.committed: list[Committed] = []
        self.removed: list[tuple[Channel, Position]] = []
        self.blanked: list[Channel] = []
        self.expired: list[Channel] = []
        self.notices: list[str] = []
        self.lost = False


class _Row(NamedTuple):
    id: int
    kind: str
    channel: Channel
    number: int
    data: RawJson
    info: RawJson | None
    tags: RawJson | None


class _Rows(NamedTuple):
    """Rows that were read; `end` is the last one's id if there may be more, else 0."""

    found: list[Any]
    end: int


class News:
    """The bookmark of one process. For the writer's thread only.

    Args:
        connection: The writer's, in autocommit mode.
        now: Returns monotonic seconds.
        wall: Returns Unix milliseconds, for the times of rows.
        tell: Takes each `Told`, and calls `taken` when it was handled.
        forget: Takes the channels that others have changed, None for all there are.
            Called whenever the bookmark moves past what others did.
        freed: Takes the bytes that others have deleted of a namespace.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        now: Callable[[], float],
        wall: Callable[[], int],
        *,
        tell: Callable[[Told], None],
        forget: Callable[[Iterable[Channel] | None], None],
        freed: Callable[[str, int], None],
    ) -> None:
        self._now = now
        self.wall = wall
        self._tell = tell
        self._forget = forget
        self._freed = freed
        # Each of these is counted by one thread alone.
        self._handed_over = 0
        self._taken = 0
        self._wait = ACTIVE
        self._active_until = self._looked_at = now()
        self.use(connection)
        self._seen = self._last()

    def use(self, connection: sqlite3.Connection) -> None:
        """Go on with another connection to the same file."""
        self._connection = connection
        self._execute = connection.execute
        self._version = -1

    def taken(self) -> None:
        """Note that a `Told` was handled. On the event loop."""
        self._taken += 1

    def passed(self, number: int) -> None:
        """Note a commit of our own, whose last id was *number*."""
        self._seen = number

    def look(self) -> float:
        """Look for news between two transactions; return seconds until the next look.

        Raises:
            sqlite3.Error: It could not be read.
        """
        now = self._now()
        if self._handed_over - self._taken < UNREAD:
            found, more = False, False
            if self._changed():
                with snapshot(self._connection):
                    found, more = self._read(now)
            self._looked_at = now
            if more:
                return 0.0
            if found:
                self._active_until = now + CALM
        if now < self._active_until:
            self._wait = ACTIVE
        else:
            self._wait = min(GROWTH * self._wait, IDLE)
        return self._wait

    def catch_up(self) -> None:
        """Tell all news, inside a transaction that holds the write lock."""
        now = self._now()
        more = self._changed()
        while more:
            found, more = self._read(now)
            if found:
                self._active_until = now + CALM
        self._looked_at = now

    def _changed(self) -> bool:
        """Tell whether another connection has committed since the last `_read`."""
        version: int
        (version,) = self._execute("PRAGMA data_version").fetchone()
        return version != self._version

    def _read(self, now: float) -> tuple[bool, bool]:
        """Tell some news; return whether there were any, and whether there are more."""
        (version,) = self._execute("PRAGMA data_version").fetchone()
        last = self._last()
        if last == self._seen:
            self._version = version
            return False, False
        if last - self._seen > BACKLOG or now - self._looked_at > KEPT / 2:
            self._skip()
            self._seen, self._version = last, version
            return True, False
        publications = self._rows(_PUBLICATIONS)
        news = self._rows(_NEWS)
        # Neither is told beyond where the other was cut off.
        end = min([last, *[rows.end for rows in (publications, news) if rows.end]])
        self._report(
            [row for row in publications.found if row[0] <= end],
            [_Row(*row) for row in news.found if row[0] <= end],
        )
        self._seen = end
        if end == last:
            self._version = version
        return True, end < last

    def _rows(self, statement: str) -> _Rows:
        """Read rows above the bookmark, as far as the bounds allow."""
        found = []
        size = 0
        with contextlib.closing(self._execute(statement, (self._seen, ROWS))) as rows:
            for row in rows:
                found.append(row)
                size += len(row[4])
                if size >= BYTES:
                    return _Rows(found, row[0])
        return _Rows(found, found[-1][0] if len(found) == ROWS else 0)

    def _skip(self) -> None:
        """Tell only how far each channel has come."""
        told = Told()
        told.lost = True
        rows = self._execute(_NEWEST, (self._seen,)).fetchall()
        told.committed = [_committed(row, 0) for row in rows]
        self._forget(None)
        self._hand_over(told)

    def _report(self, publications: list[Any], news: list[_Row]) -> None:
        told = Told()
        flags = {row.id: row.number for row in news if row.kind == FLAGS}
        passing = [row for row in news if row.kind == PASSING]
        told.committed = [_committed(row, flags.get(row[0], 0)) for row in publications]
        changed = {row[1] for row in publications}
        if passing:
            numbers = [row[0] for row in publications]
            merged = list(zip(numbers, told.committed, strict=True))
            merged += [(row.id, _passing(row)) for row in passing]
            merged.sort(key=itemgetter(0))
            told.committed = [one for _, one in merged]
        for row in news:
            if row.kind == REMOVED:
                told.removed.append((row.channel, Position(row.number, row.data)))
            elif row.kind == BLANKED:
                told.blanked.append(row.channel)
            elif row.kind == EXPIRED:
                told.expired.append(row.channel)
            elif row.kind == NOTICE:
                told.notices.append(row.channel)
            elif row.kind == FREED:
                self._freed(row.channel, row.number)
            if row.kind in (REMOVED, EXPIRED, SWEPT):
                changed.add(row.channel)
        self._forget(changed)
        self._hand_over(told)

    def _hand_over(self, told: Told) -> None:
        self._handed_over += 1
        self._tell(told)

    def _last(self) -> int:
        last: int
        (last,) = self._execute(_LAST).fetchone()
        return last


def _committed(row: Any, flags: int) -> Committed:
    _, channel, epoch, offset, data, info, tags, time = row
    return Committed(
        Channel(channel),
        Publication(offset, data, info, tags, time),
        epoch,
        bool(flags & _DELTA),
        bool(flags & _URGENT),
    )


def _passing(row: _Row) -> Committed:
    return Committed(
        row.channel,
        Publication(0, row.data, row.info, row.tags),
        "",
        bool(row.number & _DELTA),
        bool(row.number & _URGENT),
    )

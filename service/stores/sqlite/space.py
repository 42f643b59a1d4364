"""Space that a SQLite store takes: its limits, and what is given back to the disk.

The size of the store is that of the pages in use; the file has free pages beside them,
which later publications fill. A namespace's size is counted: the bytes of its
publications, without the rows around them. Both are measured when the store is opened
and kept up to date by what is committed and deleted; nothing is counted without limits.

At a limit, publications that would be kept are refused, until what has expired or was
removed brings the size down to `LOW` of the limit. Nothing else is refused: a full
store is read, swept and erased from as before.

All methods are for the writer's thread and block, except `refusal` and `sizes`, which
only look at what that thread has left.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import structlog

from service.core.errors import StoreFull
from service.core.model import Channel
from service.core.ports import Committed
from service.core.position import size_of_publication
from service.settings import StoreSettings
from service.stores.sqlite.schema import MEMORY, truncate_log

__all__ = ["Sizes", "Space"]

LOW = 0.9  # of a limit; there, publications are accepted again

MEASURED = 1024 * 1024  # bytes of publications after which the file is measured again

# The file shrinks when it has this many free pages, and more than a quarter of all: a
# store whose size goes up and down keeps pages for the next rise.
FREE = 256  # pages; 1 MiB
MOVED = 256  # pages in a step, which is one transaction of some milliseconds

# SQLite begins the log anew at every 4 MB, but never shortens it by itself.
LOG = 16 * 1024 * 1024  # bytes; a larger log is emptied

_SIZE = (
    "length(CAST(data AS BLOB)) + coalesce(length(CAST(info AS BLOB)), 0)"
    " + coalesce(length(CAST(tags AS BLOB)), 0)"
)

_log = structlog.get_logger(__name__)


class Sizes(NamedTuple):
    """Bytes that a store takes.

    Attributes:
        used: Pages in use.
        file: The file, without its log.
        log: The write-ahead log.
    """

    used: int = 0
    file: int = 0
    log: int = 0


class Space:
    """The space of one store.

    Args:
        connection: The writer's, in autocommit mode.
        settings: Of the store.
        namespaces: Bytes that the publications of a namespace may have, by its name.

    Attributes:
        limited: There is a limit. If not, `refusal` need not be asked.
        sizes: As last measured.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        settings: StoreSettings,
        namespaces: Mapping[str, int],
    ) -> None:
        self.use(connection)
        self._path = settings.path
        self._timeout = 0.0 if settings.shared_by else settings.lock_timeout
        self._limit = settings.max_size
        self._namespaces = namespaces
        self.limited = bool(self._limit or namespaces)
        self.sizes = Sizes()
        self._unmeasured = 0  # bytes of publications
        self._counts = dict.fromkeys(namespaces, 0)  # bytes
        self._counted = not namespaces  # whether they are true
        self._deleted: list[tuple[str, int]] = []  # in the transaction under way
        self._full: frozenset[str | None] = frozenset()  # namespaces; None: the store
        self._shrinking = False
        self.measure()

    def use(self, connection: sqlite3.Connection) -> None:
        """Go on with another connection to the same file."""
        self._execute = connection.execute
        self._script = connection.executescript

    def refusal(self, channel: Channel) -> StoreFull | None:
        """Return why a publication cannot be kept; None if it can."""
        full = self._full
        if not full:
            return None
        if None in full:
            return StoreFull("the store is full (store.max_size)")
        name = _namespace_of(channel)
        if name in full:
            return StoreFull(f"the namespace {name!r} is full (max_size)")
        return None

    def added(self, committed: Sequence[Committed]) -> None:
        """Count what was committed: these publications, and what was deleted."""
        self.commit()
        for one in committed:
            if one.publication.offset:
                size = size_of_publication(one.publication)
                self._unmeasured += size
                if self._namespaces:
                    self._count(_namespace_of(one.channel), size)
        if self._unmeasured >= MEASURED:
            self.measure()
        else:
            self._compare()

    def deleting(
        self, channel: Channel, channel_id: int, bound: int
    ) -> tuple[str, int] | None:
        """Count publications that are about to be deleted, up to offset *bound*.

        Returns:
            The namespace and their bytes, where there is a limit.
        """
        if not self._namespaces:
            return None
        name = _namespace_of(channel)
        if name in self._namespaces:
            (size,) = self._execute(
                f"SELECT coalesce(sum({_SIZE}), 0) FROM publications"
                " WHERE channel_id = ? AND offset <= ?",
                (channel_id, bound),
            ).fetchone()
            self._deleted.append((name, size))
            return name, size
        return None

    def freed(self, name: str, size: int) -> None:
        """Count what another process has deleted of a namespace."""
        self._count(name, -size)

    def commit(self) -> None:
        """Count what `deleting` was told of in a transaction that was committed."""
        for name, size in self._deleted:
            self._count(name, -size)
        self._deleted.clear()

    def rollback(self) -> None:
        """Forget what `deleting` was told of."""
        self._deleted.clear()

    def blanked(self) -> None:
        """Count everything anew when it is measured next: publications were blanked."""
        self._counted = not self._namespaces

    def measure(self) -> None:
        """Read the size of the store, and refuse or accept publications by it."""
        self._unmeasured = 0
        [(page,)] = self._execute("PRAGMA page_size").fetchall()
        pages, free = self._page_counts()
        log = 0
        if self._path != MEMORY:
            with contextlib.suppress(FileNotFoundError):
                log = os.stat(self._path + "-wal").st_size
        self.sizes = Sizes((pages - free) * page, pages * page, log)
        if not self._counted:
            self._counts = dict.fromkeys(self._namespaces, 0)
            self._counted = True
            for name, size in self._execute(
                f"SELECT name, sum({_SIZE}) FROM publications"
                " JOIN channels ON channels.id = channel_id GROUP BY channel_id"
            ):
                self._count(_namespace_of(name), size)
        self._compare()

    def tidy(self) -> bool:
        """Give free pages and a large log back to the disk, a step of it.

        Returns:
            Whether there is more to do at once.
        """
        pages, free = self._page_counts()
        if free >= FREE and free > pages // (8 if self._shrinking else 4):
            # Not `execute`: it stops at the first row, which stands for one page.
            self._script(f"PRAGMA incremental_vacuum({MOVED})")
            self._shrinking = True
            return True
        shrunk, self._shrinking = self._shrinking, False
        self.measure()
        if shrunk or self.sizes.log > LOG:  # the file is cut off when the log is
            self._empty_log()
        return False

    def _empty_log(self) -> None:
        # Without waiting for those that read it: it is tried again later.
        self._execute("PRAGMA busy_timeout = 0")
        try:
            truncate_log(self._execute)
        finally:
            self._execute(f"PRAGMA busy_timeout = {round(1000 * self._timeout)}")
        self.measure()

    def _page_counts(self) -> tuple[int, int]:
        """Return how many pages the file has, and how many of them are free."""
        [(pages,)] = self._execute("PRAGMA page_count").fetchall()
        [(free,)] = self._execute("PRAGMA freelist_count").fetchall()
        return pages, free

    def _count(self, name: str, size: int) -> None:
        if name in self._counts:
            self._counts[name] += size

    def _compare(self) -> None:
        """Compare sizes with limits, and log each limit that is reached or left."""
        full: set[str | None] = set()
        if self._is_full(None, self.sizes.used + self._unmeasured, self._limit):
            full.add(None)
        for name, size in self._counts.items():
            if self._is_full(name, size, self._namespaces[name]):
                full.add(name)
        self._full = frozenset(full)

    def _is_full(self, name: str | None, size: int, limit: int) -> bool:
        was = name in self._full
        full = limit > 0 and size >= (LOW * limit if was else limit)
        if full != was:
            what = {"namespace": name} if name is not None else {}
            if full:
                _log.error("the store is full", size=size, limit=limit, **what)
            else:
                _log.info("the store has room again", size=size, limit=limit, **what)
        return full


def _namespace_of(channel: str) -> str:
    """Return the namespace of a channel, as in `auth.permissions`; "" for none."""
    name, colon, _ = channel.removeprefix("$").partition(":")
    return name if colon else ""

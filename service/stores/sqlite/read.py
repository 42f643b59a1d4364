"""One read of one channel, for all who want something of it. Blocks.

All statements of a read see the same snapshot. What ends at the top and is not much
more than was asked for is read as one `Tail`, so that the cache can take it over;
only a page far below the top is read for itself.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterator

from service.core.model import Channel, HistoryPage, Position, Publication
from service.stores.history_cache import ReadRequest, Tail, milliseconds
from service.stores.sqlite.channel_state import unpublished_epoch

__all__ = ["load"]

# Reading up to so many publications more than a page needs, up to the top, is
# cheaper than reading the next page of the same client again.
WINDOW = 512  # count
BYTES = 4 * 1024 * 1024  # of payloads; however many large ones a window may hold


def load(
    connection: sqlite3.Connection,
    channel: Channel,
    demands: Collection[ReadRequest],
    now: int,
) -> tuple[Tail, dict[ReadRequest, HistoryPage]]:
    """Read what *demands* ask of *channel* at *now* (Unix ms).

    Returns:
        The channel's tail, and the answers that it cannot give.

    Raises:
        sqlite3.Error: The read failed.
    """
    with _snapshot(connection):
        row = connection.execute(
            "SELECT id, epoch, max(top, coalesce("
            "(SELECT max(offset) FROM publications WHERE channel_id = c.id), 0))"
            " FROM channels AS c WHERE name = ?",
            (channel,),
        ).fetchone()
        if row is None:
            return Tail(unpublished_epoch(connection, channel), 0, 0, []), {}
        number, epoch, top = row
        floor = top
        far: list[ReadRequest] = []
        for demand in demands:
            low, high = demand.span(top)
            if high <= low:
                continue
            if demand.limit < 0 or top - low <= max(WINDOW, demand.limit):
                floor = min(floor, low)
            else:
                far.append(demand)
        publications: list[Publication] = []
        if floor < top:
            publications, floor = _fetch(connection, number, floor, top)
            # What the bound on bytes left out is read page by page, as if far away.
            for demand in demands:
                low, high = demand.span(top)
                if high > low and low < floor and demand not in far:
                    far.append(demand)
        tail = Tail(epoch, top, floor, publications)
        pages: dict[ReadRequest, HistoryPage] = {}
        for demand in far:
            page = _page(connection, number, top, demand, now)
            pages[demand] = HistoryPage(page, Position(top, epoch))
        return tail, pages


def _fetch(
    connection: sqlite3.Connection, number: int, low: int, high: int
) -> tuple[list[Publication], int]:
    """Return the newest publications above *low*, and the offset they begin after."""
    rows = connection.execute(
        "SELECT offset, data, info, tags, time FROM publications"
        " WHERE channel_id = ? AND offset > ? AND offset <= ? ORDER BY offset DESC",
        (number, low, high),
    )
    found: list[Publication] = []
    size = 0
    for row in rows:
        size += len(row[1])
        if size > BYTES and found:
            low = row[0]
            break
        found.append(Publication(*row))
    found.reverse()
    return found, low


def _page(
    connection: sqlite3.Connection, number: int, top: int, demand: ReadRequest, now: int
) -> list[Publication]:
    """Read a page that ends far below the top."""
    low, high = demand.span(top)
    rows = connection.execute(
        "SELECT offset, data, info, tags, time FROM publications"
        " WHERE channel_id = ? AND offset > ? AND offset <= ? AND time > ?"
        f" ORDER BY offset {'DESC' if demand.reverse else 'ASC'} LIMIT ?",
        (number, low, high, now - milliseconds(demand.ttl), demand.limit),
    )
    return [Publication(*row) for row in rows.fetchall()]


@contextlib.contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
    finally:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")

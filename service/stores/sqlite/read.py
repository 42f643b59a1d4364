"""Reads of a channel's history from SQLite: one snapshot for all who asked. Blocks.

All statements of a read see the same snapshot. Requests near the top are answered from
one `Tail`, which the cache can take over; only a page far below the top is read
separately.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from service.core.model import Channel, HistoryPage, Position, Publication
from service.stores.history_cache import (
    TAIL_BYTES,
    ReadRequest,
    Tail,
    far_requests,
    milliseconds,
    tail_floor,
)
from service.stores.sqlite.channel_state import unpublished_epoch
from service.stores.sqlite.schema import snapshot

__all__ = ["read_history"]


def read_history(
    connection: sqlite3.Connection,
    channel: Channel,
    requests: Collection[ReadRequest],
    now: int,
) -> tuple[Tail, dict[ReadRequest, HistoryPage]]:
    """Read what *requests* ask of *channel* at *now* (Unix ms).

    Returns:
        The channel's tail, and the answers that it cannot give.

    Raises:
        sqlite3.Error: The read failed.
    """
    with snapshot(connection):
        row = connection.execute(
            "SELECT id, epoch, max(top, coalesce("
            "(SELECT max(offset) FROM publications WHERE channel_id = c.id), 0))"
            " FROM channels AS c WHERE name = ?",
            (channel,),
        ).fetchone()
        if row is None:
            return Tail(unpublished_epoch(connection, channel), 0, 0, []), {}
        channel_id, epoch, top = row
        publications: list[Publication] = []
        floor = tail_floor(requests, top, 0)
        if floor < top:
            publications, floor = _newest(connection, channel_id, floor, top)
        pages = {
            request: HistoryPage(
                _page(connection, channel_id, top, request, now), Position(top, epoch)
            )
            for request in far_requests(requests, top, floor)
        }
        return Tail(epoch, top, floor, publications), pages


def _newest(
    connection: sqlite3.Connection, channel_id: int, low: int, high: int
) -> tuple[list[Publication], int]:
    """Return the newest publications above *low*, and the offset they begin after."""
    rows = connection.execute(
        "SELECT offset, data, info, tags, time FROM publications"
        " WHERE channel_id = ? AND offset > ? AND offset <= ? ORDER BY offset DESC",
        (channel_id, low, high),
    )
    found: list[Publication] = []
    size = 0
    for row in rows:
        size += len(row[1])
        if size > TAIL_BYTES and found:
            low = row[0]
            break
        found.append(Publication(*row))
    found.reverse()
    return found, low


def _page(
    connection: sqlite3.Connection,
    channel_id: int,
    top: int,
    request: ReadRequest,
    now: int,
) -> list[Publication]:
    low, high = request.span(top)
    rows = connection.execute(
        "SELECT offset, data, info, tags, time FROM publications"
        " WHERE channel_id = ? AND offset > ? AND offset <= ? AND time > ?"
        f" ORDER BY offset {'DESC' if request.reverse else 'ASC'} LIMIT ?",
        (channel_id, low, high, now - milliseconds(request.ttl), request.limit),
    )
    return [Publication(*row) for row in rows.fetchall()]

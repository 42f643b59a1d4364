"""Recovery rules: whether the gap behind a client's position can be filled.

A client that comes back names the last offset it saw and the epoch of that offset. It
is recovered only if *every* publication since then is known; a part is never passed off
as the whole (https://centrifugal.dev/docs/server/history_and_recovery).
"""

from __future__ import annotations

from typing import NamedTuple

from service.core.model import HistoryPage, Position, Publication, size_of

__all__ = [
    "PIECE",
    "is_recovered",
    "size_of_publication",
    "start_of",
    "take_piece",
]

PIECE = 64
"""Publications read from the store at once while a client catches up (count). With the
largest publication allowed, it bounds the memory that one slow client takes."""


def is_recovered(asked: Position, page: HistoryPage, limit: int) -> bool:
    """Tell whether *page*, read from *asked* on, begins a recovery without a gap.

    The page may be cut at its end. Only the oldest publications can be missing, since
    history is trimmed from the old end alone.

    Args:
        asked: The client's position; epoch "" accepts any.
        page: Publications after ``asked.offset``, in order, and the stream's top.
        limit: Most publications in a gap that is recovered.
    """
    if asked.epoch not in ("", page.top.epoch):
        return False
    gap = page.top.offset - asked.offset
    if gap == 0:
        return True
    if not 0 < gap <= limit or not page.publications:
        return False
    return page.publications[0].offset == asked.offset + 1


class Start(NamedTuple):
    """Where a subscription starts.

    Attributes:
        offset: The last offset that the client has, or counts as having.
        missed: What follows it, perhaps cut at its end; None if nothing is recovered.
    """

    offset: int
    missed: list[Publication] | None


def start_of(since: Position | None, page: HistoryPage, limit: int) -> Start:
    """Return where a subscription starts.

    Args:
        since: The client's position; None for no recovery.
        page: Publications after ``since.offset``, in order, and the stream's top.
        limit: Most publications in a gap that is recovered.
    """
    if since is not None and is_recovered(since, page, limit):
        return Start(since.offset, page.publications)
    return Start(page.top.offset, None)


def take_piece(
    publications: list[Publication], size: int, *, least: int = 1
) -> list[Publication]:
    """Return the longest prefix that fits into *size* bytes, but *least* at least."""
    total = 0
    for count, publication in enumerate(publications):
        total += size_of_publication(publication)
        if total > size and count >= least:
            return publications[:count]
    return publications


def size_of_publication(publication: Publication) -> int:
    """Return the bytes of a publication's texts, without its frame."""
    extra = size_of(publication.info or "") + size_of(publication.tags or "")
    return size_of(publication.data) + extra

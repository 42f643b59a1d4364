"""Recovery rules: which gaps are recovered, and how large a piece is."""

from __future__ import annotations

import pytest

from service.core.model import HistoryPage, Position, Publication, RawJson
from service.core.position import is_recovered, size_of_publication, take_piece


def page(*offsets: int, top: int, epoch: str = "e") -> HistoryPage:
    kept = [Publication(offset, RawJson("{}")) for offset in offsets]
    return HistoryPage(kept, Position(top, epoch))


@pytest.mark.parametrize(
    ("asked", "found", "recovered"),
    [
        (Position(3, "e"), page(top=3), True),
        (Position(3, ""), page(top=3), True),
        (Position(3, "other"), page(top=3), False),
        (Position(1, "e"), page(2, 3, top=3), True),
        (Position(1, "e"), page(2, top=3), True),  # cut at its end
        (Position(1, "e"), page(3, top=3), False),  # the oldest is missing
        (Position(1, "e"), page(top=3), False),
        (Position(0, "e"), page(1, 2, 3, top=3), True),
        (Position(0, "e"), page(1, 2, 3, 4, top=4), False),  # over the limit
        (Position(4, "e"), page(top=3), False),  # ahead of the stream
    ],
)
def test_is_recovered(asked: Position, found: HistoryPage, recovered: bool) -> None:
    assert is_recovered(asked, found, 3) is recovered


def test_a_piece_fits_its_size_but_has_one_publication_at_least() -> None:
    publications = [Publication(n, RawJson('"é"')) for n in range(1, 4)]
    assert size_of_publication(publications[0]) == 4
    assert take_piece(publications, 8) == publications[:2]
    assert take_piece(publications, 12) == publications
    assert take_piece(publications, 1) == publications[:1]
    assert take_piece([], 1) == []


def test_the_size_of_a_publication_has_its_info_and_tags() -> None:
    publication = Publication(1, RawJson("1"), RawJson("{}"), RawJson('{"a":"b"}'))
    assert size_of_publication(publication) == 1 + 2 + 9

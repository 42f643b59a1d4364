"""The writer: in pieces or at once, the text is the same, and no piece is large."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.payload import dump, writer
from service.payload.writer import encode, write
from tests.payload.strictjson import strict

LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=9) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=60,
)


@given(VALUES, st.integers(1, 12))
@settings(deadline=None)
def test_the_text_is_that_of_one_piece(value, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "PIECE", piece)
        assert write(value, lambda: None) == encode(value)


def count(value):
    """Return how many values ujson goes over, one that is written counted as one."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 1
    return 1 + sum(map(count, value))


def depth(value):
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return 0
    return 1 + max(map(depth, value), default=0)


@given(VALUES, st.integers(1, 12))
@settings(deadline=None)
def test_no_piece_is_large(value, piece):
    sizes = []

    def noted(value):
        sizes.append(count(value))
        return encode(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "PIECE", piece)
        patch.setattr(writer, "encode", noted)
        write(value, lambda: None)
    assert max(sizes) <= piece + 1 + depth(value)
    assert sum(sizes) <= 4 * count(value) + 4


@pytest.mark.parametrize("make", [list, tuple], ids=lambda make: make.__name__)
@pytest.mark.requirement("B51")
def test_a_large_state_is_written_in_pieces_with_a_pause_after_each(make):
    value = {"items": make({"id": n, "tags": []} for n in range(20_000)), "n": 1}
    pauses = itertools.count()
    text = write(value, lambda: next(pauses))
    assert text == encode(value) == dump(value)
    assert next(pauses) == 3 * 20_000 // writer.PIECE


def test_a_large_set_is_sorted_in_pieces_as_in_one():
    numbers = [n * 7919 % 100_003 for n in range(50_000)]
    assert strict(dump(set(numbers))) == sorted(numbers)
    mixed = strict(dump({*numbers[:20_000], *map(str, numbers[:20_000])}))
    assert mixed == sorted(mixed, key=encode)
    assert len(mixed) == 40_000

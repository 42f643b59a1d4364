"""Fossil deltas: one contract, run on the interpreted and the compiled function."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.speedups.fossil import applied
from tests.speedups.twins import DELTA, delta_c, delta_py, needs_compiled

PIECE = "Wörter in mehr als einer Länge: 語りえぬものについては、沈黙 "


@pytest.fixture(params=DELTA)
def side(request):
    return request.param


@pytest.mark.parametrize(
    ("old", "new", "delta"),
    [
        (b"", b"", b"0\n0;"),
        (b"", b"a", b"1\n1:a1X0000;"),
        (b"abcd", b"abcd", b"4\n4@0,1XObD_;"),
        (b"abcd", b"", b"0\n0;"),
    ],
)
def test_the_least_deltas(side, old, new, delta):
    assert applied(old, delta) == new
    assert side.fossil_delta(old, new) == delta


def test_a_text_that_grows_by_a_word_costs_a_word(side):
    text, before = "", b'{"seq":0,"text":""}'
    for n in range(1, 2000):
        text += f"word{n} "
        new = f'{{"seq":{n},"text":"{text}"}}'.encode()
        delta = side.fossil_delta(before, new)
        assert applied(before, delta) == new
        assert len(delta) <= 48, delta
        before = new


def test_a_part_that_moved_is_copied(side):
    parts = [bytes([65 + n]) * 40 + b"%d" % n * 20 for n in range(20)]
    old, new = b"".join(parts), b"".join(reversed(parts))
    delta = side.fossil_delta(old, new)
    assert applied(old, delta) == new
    assert len(delta) < len(new) // 3


def test_a_large_text_without_anything_in_common_is_sent_as_it_is(side):
    old, new = b"x" * 200_000, b"y" * 200_000
    delta = side.fossil_delta(old, new)
    assert applied(old, delta) == new
    assert len(delta) < len(new) + 32


def test_the_checksum_of_every_length(side):
    for size in range(80):
        new = b"\xff" * size
        assert applied(b"", side.fossil_delta(b"", new)) == new


@pytest.mark.parametrize("arguments", [("a", b"b"), (b"a", "b"), (None, b""), (b"", 1)])
def test_what_is_not_bytes_is_a_type_error(side, arguments):
    with pytest.raises(TypeError):
        side.fossil_delta(*arguments)


texts = st.text(max_size=40) | st.integers(0, 9).map(lambda n: PIECE[n:] * (n + 1))
edits = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 60), texts), max_size=5)


@given(parts=st.lists(texts, max_size=12), changes=edits, part=st.integers(0, 12))
def test_any_edit_is_undone_by_applying_and_every_delta_is_text(parts, changes, part):
    old = "".join(parts)
    new = old
    for at, length, text in changes:
        at %= len(new) + 1
        new = new[:at] + text + new[at + length :]
    new = new[part:] + new[:part]
    before, after = old.encode(), new.encode()
    delta = delta_py.fossil_delta(before, after)
    assert applied(before, delta) == after
    delta.decode()
    if delta_c is not None:
        assert delta_c.fossil_delta(before, after) == delta


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_bytes_that_are_not_text_survive(old, new):
    delta = delta_py.fossil_delta(old, new)
    assert applied(old, delta) == new
    if delta_c is not None:
        assert delta_c.fossil_delta(old, new) == delta


@needs_compiled
def test_the_extension_was_compiled_with_its_types():
    assert not hasattr(delta_c, "_search"), "delta_c.pxd was not found"

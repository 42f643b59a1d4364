"""Server-sent events: any bytes, in any pieces."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import CodecError
from service.core.event_stream import (
    COMMENT,
    EventStreamReader,
    ServerSentEvent,
    event_bytes,
)

LIMIT = 1000


def read(*pieces: bytes, limit: int = LIMIT) -> list[ServerSentEvent]:
    reader = EventStreamReader(limit)
    return [event for piece in pieces for event in reader.feed(piece)]


def as_the_standard_says(stream: bytes) -> list[ServerSentEvent]:
    """Read a whole stream as the HTML standard's grammar describes it."""
    text = stream.removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
    lines = re.split("\r\n|\r|\n", text)[:-1]  # what follows the last end is no line
    events: list[ServerSentEvent] = []
    data, kind, last = "", "", ""
    for line in lines:
        if line == "":
            if data:
                events.append(ServerSentEvent(data[:-1], kind, last))
            data, kind = "", ""
            continue
        if line[0] == ":":
            continue
        name, _, value = line.partition(":")
        value = value[1:] if value[:1] == " " else value
        if name == "data":
            data += value + "\n"
        elif name == "event":
            kind = value
        elif name == "id" and "\0" not in value:
            last = value
    return events


ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
VALUES = st.sampled_from([b"", b" ", b"x", b" a: b", b"\xc3\xa4", b"\xff", b"\0", b"7"])
NAMES = st.sampled_from([b"data", b"event", b"id", b"retry", b"datum", b" data", b""])
LINES = st.one_of(
    st.just(b""),
    st.builds(lambda n, v: n + b":" + v, NAMES, VALUES),
    st.builds(lambda n, v: n + b": " + v, NAMES, VALUES),
    st.just(b"data"),
    st.just(b":"),
    st.just(b": data: x"),
)
STREAMS = st.builds(
    lambda bom, lines: bom + b"".join(line + end for line, end in lines),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    st.lists(st.tuples(LINES, ENDS), max_size=12),
)


@given(STREAMS, st.lists(st.integers(0, 200), max_size=8))
def test_any_stream_in_any_pieces_is_what_the_standard_says(
    stream: bytes, cuts: list[int]
) -> None:
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    pieces = [stream[a:b] for a, b in pairwise(places)]
    expected = as_the_standard_says(stream)
    assert read(*pieces) == expected
    assert read(*[stream[i : i + 1] for i in range(len(stream))]) == expected


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(stream: bytes) -> None:
    assert read(stream) == as_the_standard_says(stream)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_an_event_of_the_largest_size_is_read_and_no_larger_one(end: bytes) -> None:
    line = b"data:" + b"x" * (LIMIT - 5)
    (event,) = read(line + end + end + b"data:y" + end)
    assert len(event.data) == LIMIT - 5
    for stream in (line + b"x" + end, line + end + b"data:" + end):
        with pytest.raises(CodecError):
            read(stream)
        with pytest.raises(CodecError):
            read(*[stream[i : i + 1] for i in range(len(stream))])


def test_comments_do_not_count_against_the_next_event() -> None:
    line = b": " + b"x" * (LIMIT - 10) + b"\n"
    assert read(line, line, b"data: x\n\n") == [ServerSentEvent("x")]


def test_what_is_written_is_read() -> None:
    stream = COMMENT + event_bytes('{"a":"ä"}', "12") + event_bytes("[]") + COMMENT
    assert read(stream) == [
        ServerSentEvent('{"a":"ä"}', "", "12"),
        ServerSentEvent("[]", "", "12"),
    ]


def test_an_event_without_its_end_is_dropped() -> None:
    assert read(b"data: whole\n\ndata: ha", b"lf\n") == [ServerSentEvent("whole")]

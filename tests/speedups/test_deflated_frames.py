"""permessage-deflate without context takeover (RFC 7692): one contract, both twins."""

import random
import zlib

import pytest

from tests.speedups.streams import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FAILED,
    FRAGMENT,
    LARGE,
    PING,
    PONG,
    TEXT,
    Websockets,
    compare,
    cuts,
    fed,
    frame,
    streams,
)
from tests.speedups.twins import FRAMES, frames_c, frames_py, needs_compiled

LIMIT = 1000
TAIL = b"\x00\x00\xff\xff"


@pytest.fixture(params=FRAMES)
def side(request):
    return request.param


def deflated(payload, window=15):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -window)
    data = deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)
    return data[:-4]


def inflated(frame):
    return zlib.decompressobj(-15).decompress(frame + TAIL)


def message(payload, opcode=TEXT):
    return frame(opcode, payload, rsv=4)


HELLO = bytes.fromhex("f248cdc9c90700")
HALVES = deflated("😀".encode())

CASES = {
    # The examples of RFC 7692, 7.2.3, that do not take a context over.
    "one block": (message(HELLO), [(TEXT, "Hello")]),
    "in two frames": (
        frame(TEXT, HELLO[:3], rsv=4, fin=False) + frame(CONTINUATION, HELLO[3:]),
        [(FRAGMENT, 3), (TEXT, "Hello")],
    ),
    "not compressed": (
        message(bytes.fromhex("000500faff48656c6c6f00")),
        [(TEXT, "Hello")],
    ),
    "a last block": (message(bytes.fromhex("f348cdc9c9070000")), [(TEXT, "Hello")]),
    "two blocks": (
        message(bytes.fromhex("f248050000 00ffffcac9c90700".replace(" ", ""))),
        [(TEXT, "Hello")],
    ),
    "nothing": (message(b"\x00"), [(TEXT, "")]),
    # Others.
    "bytes": (message(deflated(b"\xff" * 99), BINARY), [(BINARY, b"\xff" * 99)]),
    "a narrow window": (
        message(deflated(b"ab" * 400, 9)),
        [(TEXT, "ab" * 400)],
    ),
    "deflated, plain, deflated": (
        message(HELLO) + frame(TEXT, b"plain") + message(HELLO),
        [(TEXT, "Hello"), (TEXT, "plain"), (TEXT, "Hello")],
    ),
    "with control frames between the fragments": (
        frame(TEXT, HELLO[:2], rsv=4, fin=False)
        + frame(PING, b"1")
        + frame(CONTINUATION, fin=False)
        + frame(PONG, b"2")
        + frame(CONTINUATION, HELLO[2:]),
        [(FRAGMENT, 2), (PING, b"1"), (FRAGMENT, 0), (PONG, b"2"), (TEXT, "Hello")],
    ),
    "half a character in a fragment": (
        frame(TEXT, HALVES[:3], rsv=4, fin=False) + frame(CONTINUATION, HALVES[3:]),
        [(FRAGMENT, 3), (TEXT, "😀")],
    ),
    "a close between fragments": (
        frame(TEXT, HELLO[:2], rsv=4, fin=False) + frame(CLOSE, b"\x03\xe8"),
        [(FRAGMENT, 2), (CLOSE, (1000, ""))],
    ),
    "the limit": (message(deflated(b"a" * LIMIT)), [(TEXT, "a" * LIMIT)]),
    "one more": (message(deflated(b"a" * (LIMIT + 1))), [(FAILED, 1009)]),
    "one more in a fragment": (
        frame(TEXT, deflated(b"a" * (LIMIT + 1)), rsv=4, fin=False),
        [(FAILED, 1009)],
    ),
    "one more together": (
        frame(TEXT, b"a" * LIMIT, fin=False)
        + frame(CONTINUATION, b"a", rsv=4, fin=False),
        [(FRAGMENT, LIMIT), (FAILED, 1002)],
    ),
    "not to be inflated": (message(b"\xff" * 9), [(FAILED, 1007)]),
    "of the context before": (
        message(HELLO) + message(bytes.fromhex("f200110000")),
        [(TEXT, "Hello"), (FAILED, 1007)],
    ),
    "not UTF-8": (message(deflated(b"a\xff")), [(FAILED, 1007)]),
    "half a character": (message(deflated("😀".encode()[:2])), [(FAILED, 1007)]),
    "a continuation that says so": (
        frame(TEXT, HELLO[:2], rsv=4, fin=False)
        + frame(CONTINUATION, HELLO[2:], rsv=4),
        [(FRAGMENT, 2), (FAILED, 1002)],
    ),
    "a ping": (frame(PING, b"p", rsv=4), [(FAILED, 1002)]),
    "a close": (frame(CLOSE, b"\x03\xe8", rsv=4), [(FAILED, 1002)]),
    "two reserved bits": (frame(TEXT, HELLO, rsv=6), [(FAILED, 1002)]),
    "another reserved bit": (frame(TEXT, HELLO, rsv=2), [(FAILED, 1002)]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_whole_and_byte_by_byte(side, case):
    data, events = CASES[case]
    assert fed(side.FrameParser(LIMIT, True), data) == events
    assert fed(side.FrameParser(LIMIT, True), data, range(1, len(data))) == events


def test_without_it_no_message_is_deflated(side):
    assert side.FrameParser(LIMIT).feed(message(HELLO)) == [(FAILED, 1002)]


class Watched:
    """An inflater that notes how much was asked of it, and given."""

    def __init__(self, asked, given):
        self._it = zlib.decompressobj(-15)
        self._asked, self._given = asked, given

    @property
    def eof(self):
        return self._it.eof

    def decompress(self, data, most):
        found = self._it.decompress(data, most)
        self._asked.append(most)
        self._given.append(len(found))
        return found


@pytest.mark.parametrize("pieces", [1, 7])
def test_no_more_is_inflated_than_one_byte_beyond_the_limit(side, monkeypatch, pieces):
    asked, given = [], []
    monkeypatch.setattr(frames_py, "inflater", lambda: Watched(asked, given))
    data = message(deflated(bytes(1 << 20)))
    step = len(data) // pieces
    events = fed(side.FrameParser(LIMIT, True), data, range(step, len(data), step))
    assert events == [(FAILED, 1009)]
    assert max(asked) == sum(given) == LIMIT + 1


def test_frames_of_nothing_are_counted_as_they_are(side):
    """Blocks without a byte inflate to nothing, however many there are."""
    nothing = (b"\x00" + TAIL) * 80
    parser = side.FrameParser(LIMIT, True)
    events = parser.feed(frame(BINARY, nothing, rsv=4, fin=False))
    for _ in range(9):
        events += parser.feed(frame(CONTINUATION, nothing, fin=False))
    assert events == [(FRAGMENT, 400)] * 3 + [(FAILED, 1009)]  # 1314 bytes


def test_a_message_that_does_not_get_shorter_by_it_has_the_whole_limit(side):
    data = random.Random(7692).randbytes(LIMIT)
    sent = deflated(data)
    assert len(sent) > LIMIT
    assert side.FrameParser(LIMIT, True).feed(message(sent, BINARY)) == [(BINARY, data)]


# Building frames.


@pytest.mark.parametrize("window", range(9, 16))
@pytest.mark.parametrize(
    ("opcode", "payload"), [(TEXT, "grün " * 400), (BINARY, bytes(9000))]
)
def test_a_message_that_is_deflated(side, opcode, payload, window):
    built = side.build_deflated(opcode, payload, window)
    octets = payload.encode() if isinstance(payload, str) else payload
    size = built[1] if built[1] < 126 else int.from_bytes(built[2:4], "big")
    assert built[0] == 0xC0 | opcode
    assert size == len(built) - (2 if size < 126 else 4)
    inflate = zlib.decompressobj(-window)
    assert inflate.decompress(built[-size:] + TAIL) == octets


def test_what_gets_no_shorter_is_not_deflated(side):
    data = random.Random(7692).randbytes(2000)
    for payload in ("short", "", data):
        opcode = TEXT if isinstance(payload, str) else BINARY
        built = side.build_deflated(opcode, payload, 15)
        assert built == side.build_frame(opcode, payload)


@pytest.mark.parametrize(
    ("opcode", "payload", "window", "error"),
    [
        (PING, b"p", 15, ValueError),
        (TEXT, "a", 8, ValueError),
        (TEXT, "a", 16, ValueError),
        (TEXT, "\ud800" * 99, 15, ValueError),
        (BINARY, bytearray(99), 15, TypeError),
    ],
)
def test_what_is_not_built(side, opcode, payload, window, error):
    with pytest.raises(error):
        side.build_deflated(opcode, payload, window)


def test_a_message_for_many_is_deflated_once_from_a_size_on(side):
    shared = side.SharedFrame(100, 15)
    long = "a" * 100
    first = shared.of(long)
    assert first[0] == 0xC1
    assert shared.of(long) is first
    assert shared.of("a" * 99) == side.build_frame(TEXT, "a" * 99)
    assert shared.of(b"a" * 100) == side.build_deflated(BINARY, b"a" * 100, 15)
    assert side.SharedFrame().of(long) == side.build_frame(TEXT, long)


# Chance.


@needs_compiled
def test_a_thousand_streams_show_no_disagreement_of_the_twins():
    rng = random.Random(7692)
    kinds = {1002: 0, 1007: 0, 1009: 0, "message": 0}
    for data in streams(rng, 1000, deflate=True):
        limit = rng.choice((100, 300, LARGE))
        at = cuts(rng, data)
        events = compare(frames_c, frames_py, data, at, limit, deflate=True)
        for kind, value in events:
            if kind in (FAILED, TEXT, BINARY):
                kinds[value if kind == FAILED else "message"] += 1
    assert min(kinds.values()) > 50, kinds


def test_five_hundred_streams_show_no_disagreement_with_a_library():
    """A stream that breaks the rules of frames is compared up to there."""
    rng = random.Random(7692)
    messages = 0
    for data in streams(rng, 500, minimal=True, deflate=True):
        own = [
            event
            for event in fed(frames_py.FrameParser(LARGE, True), data)
            if event[0] != FRAGMENT
        ]
        oracle = Websockets(deflate=True)
        found = oracle.feed(data)
        if own and own[-1][0] == CLOSE and oracle.refuses_close:
            own[-1] = (FAILED, 1002)
        if own and own[-1][0] == FAILED:
            assert found[: len(own) - 1] == own[:-1], data
        else:
            assert found == own, data
        messages += sum(kind in (TEXT, BINARY) for kind, _ in own)
    assert messages > 300

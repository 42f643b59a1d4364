"""WebSocket frames: one contract, run on both twins, and two libraries as oracles."""

import os
import random
import subprocess
import sys
from pathlib import Path

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
    Wsproto,
    agree,
    compare,
    cuts,
    fed,
    frame,
    streams,
)
from tests.speedups.twins import FRAMES, frames_c, frames_py, needs_compiled

STREAMS = int(os.environ.get("FUZZ_STREAMS", 200_000))
SECONDS = int(os.environ.get("FUZZ_SECONDS", 60))
LIMIT = 1000


@pytest.fixture(params=FRAMES)
def side(request):
    return request.param


SMILE = "😀".encode()

CASES = {
    "a text": (frame(TEXT, b"hi"), [(TEXT, "hi")]),
    "no text": (frame(TEXT), [(TEXT, "")]),
    "bytes": (frame(BINARY, b"\x00\xff"), [(BINARY, b"\x00\xff")]),
    "no bytes": (frame(BINARY), [(BINARY, b"")]),
    "one byte": (frame(BINARY, b"x"), [(BINARY, b"x")]),
    "two": (frame(TEXT, b"1") + frame(TEXT, b"2"), [(TEXT, "1"), (TEXT, "2")]),
    "a length of 126": (frame(TEXT, b"a" * 126), [(TEXT, "a" * 126)]),
    "the limit": (frame(TEXT, b"a" * LIMIT), [(TEXT, "a" * LIMIT)]),
    "a ping": (frame(PING, b"p" * 125), [(PING, b"p" * 125)]),
    "a pong": (frame(PONG), [(PONG, b"")]),
    "a character in fragments, with a ping and a pong between": (
        frame(TEXT, SMILE[:1], fin=False)
        + frame(PING, b"1")
        + frame(CONTINUATION, SMILE[1:3], fin=False)
        + frame(PONG, b"2")
        + frame(CONTINUATION, SMILE[3:]),
        [(FRAGMENT, 1), (PING, b"1"), (FRAGMENT, 2), (PONG, b"2"), (TEXT, "😀")],
    ),
    "empty fragments": (
        frame(BINARY, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION),
        [(FRAGMENT, 0), (FRAGMENT, 0), (BINARY, b"")],
    ),
    "a message after a fragmented one": (
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b") + frame(BINARY, b"c"),
        [(FRAGMENT, 1), (TEXT, "ab"), (BINARY, b"c")],
    ),
    "a close between fragments": (
        frame(TEXT, b"a", fin=False) + frame(CLOSE, b"\x03\xe8"),
        [(FRAGMENT, 1), (CLOSE, (1000, ""))],
    ),
    "a close": (frame(CLOSE, b"\x0b\xb8bye"), [(CLOSE, (3000, "bye"))]),
    "a close without a code": (frame(CLOSE), [(CLOSE, (1005, ""))]),
    "what follows a close": (
        frame(CLOSE, b"\x03\xe8") + frame(TEXT, b"a"),
        [(CLOSE, (1000, ""))],
    ),
    "what follows a breach": (
        frame(3) + frame(TEXT, b"a") + frame(CLOSE),
        [(FAILED, 1002)],
    ),
    "not masked": (frame(TEXT, b"a", mask=None), [(FAILED, 1002)]),
    "a continuation of nothing": (frame(CONTINUATION, b"a"), [(FAILED, 1002)]),
    "a message within one": (
        frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
        [(FRAGMENT, 1), (FAILED, 1002)],
    ),
    "a ping in fragments": (frame(PING, fin=False), [(FAILED, 1002)]),
    "a ping too long": (frame(PING, bytes(126)), [(FAILED, 1002)]),
    "a close too long": (
        frame(CLOSE, b"\x03\xe8" + b"a" * 124),
        [(FAILED, 1002)],
    ),
    "a close of one byte": (frame(CLOSE, b"\x03"), [(FAILED, 1002)]),
    "a reason that is not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), [(FAILED, 1007)]),
    "a text that is not UTF-8": (frame(TEXT, b"a\xff"), [(FAILED, 1007)]),
    "half a character": (frame(TEXT, SMILE[:2]), [(FAILED, 1007)]),
    "half a character at the end of the last fragment": (
        frame(TEXT, SMILE[:1], fin=False) + frame(CONTINUATION, SMILE[1:3]),
        [(FRAGMENT, 1), (FAILED, 1007)],
    ),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), [(FAILED, 1007)]),
    "a fragment that is not UTF-8": (
        frame(TEXT, b"\xe0\x80", fin=False),
        [(FAILED, 1007)],
    ),
    "a surrogate in fragments": (
        frame(TEXT, b"\xed\xa0", fin=False) + frame(CONTINUATION, b"\x80", fin=False),
        [(FRAGMENT, 2), (FAILED, 1007)],
    ),
    "a fragment that makes the one before wrong": (
        frame(TEXT, b"\xf4", fin=False) + frame(CONTINUATION, b"\x90", fin=False),
        [(FRAGMENT, 1), (FAILED, 1007)],
    ),
    "too long": (frame(BINARY, bytes(LIMIT + 1)), [(FAILED, 1009)]),
    "too long together": (
        frame(TEXT, b"a" * LIMIT, fin=False)
        + frame(PING)
        + frame(CONTINUATION, b"a", fin=False),
        [(FRAGMENT, LIMIT), (PING, b""), (FAILED, 1009)],
    ),
    "a length of 125 in two bytes": (
        frame(TEXT, bytes(125), width=2),
        [(FAILED, 1002)],
    ),
    "a length of 126 in eight bytes": (
        frame(TEXT, bytes(126), width=8),
        [(FAILED, 1002)],
    ),
    "the highest bit of a length": (
        b"\x82\xff\x80" + bytes(11),
        [(FAILED, 1002)],
    ),
}
CASES |= {
    f"reserved bit {rsv}": (frame(TEXT, b"a", rsv=rsv), [(FAILED, 1002)])
    for rsv in (1, 2, 4)
}
CASES |= {
    f"reserved opcode {opcode}": (frame(opcode), [(FAILED, 1002)])
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
}
ALLOWED = {*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_whole_and_byte_by_byte(side, case):
    data, events = CASES[case]
    assert fed(side.FrameParser(LIMIT), data) == events
    assert fed(side.FrameParser(LIMIT), data, range(1, len(data))) == events


@pytest.mark.parametrize(
    "code", sorted({0, 999, *range(1000, 1020), 2999, 5000, 65535, *ALLOWED})
)
def test_close_codes(side, code):
    data = frame(CLOSE, code.to_bytes(2, "big") + b"why")
    known = (CLOSE, (code, "why")) if code in ALLOWED else (FAILED, 1002)
    assert side.FrameParser(LIMIT).feed(data) == [known]


@pytest.mark.parametrize(
    ("begin", "code"),
    [
        (b"\xc1\x80", 1002),
        (b"\x81\x02", 1002),
        (b"\x89\xfe", 1002),
        (b"\x81\xfe\x03\xe9", 1009),
        (b"\x82\xff" + (1 << 62).to_bytes(8, "big"), 1009),
        (b"\x81\xfe\x03\xe8" + bytes(4) + b"a\xff", 1007),
    ],
)
def test_a_breach_is_told_as_soon_as_it_is_seen(side, begin, code):
    parser = side.FrameParser(LIMIT)
    assert fed(parser, begin[:-1]) == []
    assert parser.feed(begin[-1:]) == [(FAILED, code)]
    assert parser.feed(frame(PING)) == []


def test_only_bytes_are_fed(side):
    for wrong in ("text", bytearray(b"\x81\x80"), memoryview(b"\x81\x80"), None):
        with pytest.raises(TypeError):
            side.FrameParser(LIMIT).feed(wrong)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
@pytest.mark.parametrize(("opcode", "letter"), [(TEXT, "a"), (BINARY, b"a")])
def test_a_frame_that_is_built(side, size, opcode, letter):
    built = side.build_frame(opcode, letter * size)
    if size < 126:
        head = bytes([size])
    elif size < 65536:
        head = b"\x7e" + size.to_bytes(2, "big")
    else:
        head = b"\x7f" + size.to_bytes(8, "big")
    assert built == bytes([0x80 | opcode]) + head + b"a" * size


def test_frames_that_are_built(side):
    assert side.build_frame(TEXT, "grün") == b"\x81\x05gr\xc3\xbcn"
    assert side.build_frame(PONG, b"p") == b"\x8a\x01p"
    assert side.build_close(1000, "") == b"\x88\x02\x03\xe8"
    assert side.build_close(3501, "bad request") == b"\x88\x0d\x0d\xadbad request"
    assert side.build_close(1005, "") == b"\x88\x00"
    # Not in the middle of a character.
    assert side.build_close(1000, "ü" * 70) == b"\x88\x7c\x03\xe8" + b"\xc3\xbc" * 61


@pytest.mark.parametrize(
    ("opcode", "payload", "error"),
    [
        (CONTINUATION, b"", ValueError),
        (3, b"", ValueError),
        (-1, b"", ValueError),
        (0x81, b"", ValueError),
        (PING, bytes(126), ValueError),
        (PONG, "a" * 126, ValueError),
        (TEXT, "\ud800", ValueError),
        (TEXT, None, TypeError),
        (BINARY, bytearray(b"a"), TypeError),
    ],
)
def test_frames_that_are_not_built(side, opcode, payload, error):
    with pytest.raises(error):
        side.build_frame(opcode, payload)


@pytest.mark.parametrize(("code", "reason"), [(65536, ""), (-1, ""), (1000, "\ud800")])
def test_closes_that_are_not_built(side, code, reason):
    with pytest.raises(ValueError):
        side.build_close(code, reason)


@needs_compiled
def test_two_thousand_streams_show_no_disagreement_of_the_twins():
    rng = random.Random(6455)
    failed = 0
    for data in streams(rng, 2000):
        limit = rng.choice((100, 300, LARGE))
        events = compare(frames_c, frames_py, data, cuts(rng, data), limit)
        failed += bool(events) and events[-1][0] == FAILED
    assert 600 <= failed <= 1500


def test_a_thousand_streams_show_no_disagreement_with_two_libraries():
    rng = random.Random(6455)
    failed = 0
    for data in streams(rng, 1000, minimal=True):
        events = fed(frames_py.FrameParser(LARGE), data)
        failed += bool(events) and events[-1][0] == FAILED
        agree(Wsproto(), events, data)
        agree(Websockets(), events, data)
    assert 300 <= failed <= 700


@needs_compiled
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_streams_show_no_disagreement(capsys):
    seed = int(os.environ.get("FUZZ_SEED", random.SystemRandom().randrange(2**32)))
    rng = random.Random(seed)
    with capsys.disabled():
        print(f"\nFUZZ_SEED={seed} FUZZ_STREAMS={STREAMS}", flush=True)
        for data in streams(rng, STREAMS, minimal=True):
            events = compare(frames_c, frames_py, data, cuts(rng, data), LARGE)
            agree(Wsproto(), events, data)
            agree(Websockets(), events, data)


@needs_compiled
@pytest.mark.slow
@pytest.mark.timeout(0)
def test_coverage_guided_fuzzing_of_frames_finds_no_disagreement(capsys, tmp_path):
    pytest.importorskip("atheris")
    ended = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("fuzz_frames.py")),
            f"-max_total_time={SECONDS}",
            "-max_len=600",
            f"-artifact_prefix={tmp_path}/",
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=SECONDS + 120,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    with capsys.disabled():
        print("\n" + ended.stderr.splitlines()[-1])


@needs_compiled
def test_the_types_of_frames_were_applied():
    parser = frames_c.FrameParser(LIMIT)
    for name in ("_begin", "_take", "_rest", "_message"):
        assert not hasattr(parser, name)
    with pytest.raises(AttributeError):
        parser.other = 1
    assert frames_c.__all__ == frames_py.__all__

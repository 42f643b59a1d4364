"""WebSocket frames: one contract, run on both twins, and two libraries as oracles."""

import os
import random

import pytest

from tests.speedups.cases import CASES, LIMIT
from tests.speedups.fuzzing import fuzz
from tests.speedups.streams import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FAILED,
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


class Octets(bytes): ...


class Text(str): ...


@pytest.fixture(params=FRAMES)
def side(request):
    return request.param


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
    assert side.build_frame(BINARY, Octets(b"p")) == b"\x82\x01p"
    assert side.build_frame(TEXT, Text("p")) == b"\x81\x01p"
    assert side.build_frame(TEXT, Text("ü")) == b"\x81\x02\xc3\xbc"
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
    last = fuzz("fuzz_frames.py", 600, tmp_path)
    with capsys.disabled():
        print("\n" + last)


@needs_compiled
def test_the_types_of_frames_were_applied():
    parser = frames_c.FrameParser(LIMIT)
    for name in ("_begin", "_take", "_rest", "_message"):
        assert not hasattr(parser, name)
    with pytest.raises(AttributeError):
        parser.other = 1
    assert frames_c.__all__ == frames_py.__all__

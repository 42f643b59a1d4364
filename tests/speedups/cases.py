"""Streams of one client by name, and what RFC 6455 makes of each.

They are for the parsers alone (test_frames), and for whole servers that echo
(tests/server/test_conformance.py).
"""

from tests.speedups.streams import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FAILED,
    FRAGMENT,
    PING,
    PONG,
    TEXT,
    frame,
)

LIMIT = 1000  # bytes of a message
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

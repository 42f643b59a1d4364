"""The reader of fossil deltas, written from the description of the format."""

from __future__ import annotations

__all__ = ["applied"]

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"


def applied(old: bytes, delta: bytes) -> bytes:
    """Apply a delta as the format's description says, and check all that it claims."""
    at = 0

    def number() -> int:
        nonlocal at
        value = 0
        while chr(delta[at]) in DIGITS:
            value = value * 64 + DIGITS.index(chr(delta[at]))
            at += 1
        return value

    def mark() -> str:
        nonlocal at
        at += 1
        return chr(delta[at - 1])

    size = number()
    assert mark() == "\n"
    made = b""
    while True:
        count = number()
        match mark():
            case "@":
                offset = number()
                assert mark() == ","
                assert 0 < count <= len(old) - offset
                made += old[offset : offset + count]
            case ":":
                assert 0 < count <= len(delta) - at
                made += delta[at : at + count]
                at += count
            case ";":
                padded = made + bytes(-len(made) % 4)
                words = [padded[i : i + 4] for i in range(0, len(padded), 4)]
                total = sum(int.from_bytes(word, "big") for word in words)
                assert count == total % 2**32
                break
    assert at == len(delta)
    assert len(made) == size
    return made

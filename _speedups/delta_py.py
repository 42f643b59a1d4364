"""Fossil deltas: a text as its difference from an earlier one.

A delta is text whenever both sides are UTF-8: no literal begins or ends inside a
character, so that a delta may stand in a JSON string.

Source:
    "Fossil Delta Format", fossil-scm.org: the size of the target, then commands
    ``N@O,`` (copy N bytes from offset O of the source) and ``N:`` (N literal bytes
    follow), then ``C;`` (checksum: the sum of the target's big-endian 32-bit words);
    numbers in base 64.

This file is the interpreted fallback and also the source of the compiled
`_speedups.delta_c`, whose C types are in `delta_c.pxd`.
"""

from __future__ import annotations

__all__ = ["fossil_delta"]

DIGITS = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
BLOCK = 16  # bytes that have to be the same somewhere before a copy is tried
SEARCHED = 65536  # bytes between the common start and end; more are sent as they are
NEAR = 32  # bytes after a copy within which the next one is looked for first
SHORTEST = 8  # bytes; what a copy command costs


def fossil_delta(old: bytes, new: bytes) -> bytes:
    """Return what makes *new* of *old*, as a fossil delta.

    It may be longer than *new*: the caller compares. It takes time in proportion to
    the size of both: a common start and end are found first, then blocks of 16 bytes
    that moved within the rest of up to 64 KiB.

    Args:
        old: The earlier text, as UTF-8.
        new: The text that it becomes, as UTF-8.

    Raises:
        TypeError: If an argument is not bytes.
    """
    if not isinstance(old, bytes) or not isinstance(new, bytes):
        raise TypeError("expected bytes")
    size = len(new)
    shorter = min(len(old), size)
    start = _same_from(old, 0, new, 0, shorter)
    while 0 < start < size and _inside(new, start):
        start -= 1
    end = _same_until(old, new, shorter - start)
    while end > 0 and _inside(new, size - end):
        end -= 1
    parts = [_number(size), b"\n"]
    if start:
        parts.append(b"%b@0," % _number(start))
    stop = size - end
    if stop - start <= SEARCHED:
        _search(old, new, start, stop, parts)
    else:
        _literal(new, start, stop, parts)
    if end:
        parts.append(b"%b@%b," % (_number(end), _number(len(old) - end)))
    parts.append(b"%b;" % _number(_checksum(new)))
    return b"".join(parts)


def _search(old: bytes, new: bytes, start: int, stop: int, parts: list[bytes]) -> None:
    """Append the commands for ``new[start:stop]``.

    Most edits are small, so a copy is looked for next to where the last one ended
    before the blocks of *old* are indexed.
    """
    blocks: dict[bytes, int] | None = None
    written = at = source = start
    while at + BLOCK <= stop:
        block = new[at : at + BLOCK]
        if at - written < NEAR:
            found = old.find(block, source, source + 2 * NEAR)
        else:
            if blocks is None:
                blocks = _blocks(old)
            found = blocks.get(block, -1)
        if found < 0:
            at += 1
            continue
        first, origin = at, found
        while first > written and origin > 0 and new[first - 1] == old[origin - 1]:
            first -= 1
            origin -= 1
        length = _same_from(
            old, origin, new, first, min(len(old) - origin, stop - first)
        )
        while length > 0 and _inside(new, first):
            first += 1
            origin += 1
            length -= 1
        while length > 0 and first + length < len(new) and _inside(new, first + length):
            length -= 1
        if length < SHORTEST:
            at += 1
            continue
        _literal(new, written, first, parts)
        parts.append(b"%b@%b," % (_number(length), _number(origin)))
        written = at = first + length
        source = origin + length
    _literal(new, written, stop, parts)


def _blocks(old: bytes) -> dict[bytes, int]:
    """Return where each aligned block of *old* stands first."""
    blocks: dict[bytes, int] = {}
    for at in range(0, min(len(old), SEARCHED) - BLOCK + 1, BLOCK):
        blocks.setdefault(old[at : at + BLOCK], at)
    return blocks


def _literal(new: bytes, start: int, stop: int, parts: list[bytes]) -> None:
    if start < stop:
        parts.append(b"%b:" % _number(stop - start))
        parts.append(new[start:stop])


def _inside(text: bytes, at: int) -> bool:
    """Tell whether *at* is inside a character of more than one byte."""
    return text[at] & 0xC0 == 0x80


def _same_from(old: bytes, i: int, new: bytes, j: int, limit: int) -> int:
    """Return how many of *limit* bytes are the same from ``old[i]`` and ``new[j]``."""
    low, high = 0, limit
    if old[i : i + limit] == new[j : j + limit]:
        return limit
    while high - low > BLOCK:
        middle = (low + high) // 2
        if old[i + low : i + middle] == new[j + low : j + middle]:
            low = middle
        else:
            high = middle
    while low < limit and old[i + low] == new[j + low]:
        low += 1
    return low


def _same_until(old: bytes, new: bytes, limit: int) -> int:
    """Return how many of *limit* bytes are the same at both ends."""
    a, b = len(old), len(new)
    low, high = 0, limit
    while high - low > BLOCK:
        middle = (low + high) // 2
        if old[a - middle : a - low] == new[b - middle : b - low]:
            low = middle
        else:
            high = middle
    while low < limit and old[a - low - 1] == new[b - low - 1]:
        low += 1
    return low


def _checksum(text: bytes) -> int:
    """Return the sum of the big-endian 32-bit words of *text*, padded with zeros.

    The text is one large number, of lanes of 64 bits. Each first holds the sum of its
    two words; then the upper half of the lanes is added to the lower one until one is
    left. That is half as long as adding one word after the other.
    """
    lanes = (len(text) + 7) // 8
    number = int.from_bytes(text + bytes(8 * lanes - len(text)), "big")
    mask = int.from_bytes(b"\0\0\0\0\xff\xff\xff\xff" * lanes, "big")
    total = (number & mask) + (number >> 32 & mask)
    while lanes > 1:
        lanes = (lanes + 1) // 2
        total = (total >> 64 * lanes) + (total & ((1 << 64 * lanes) - 1))
    return total & 0xFFFFFFFF


def _number(value: int) -> bytes:
    """Return a number in base 64, the most significant digit first."""
    digits = DIGITS[value & 63 : (value & 63) + 1]
    value >>= 6
    while value > 0:
        digits = DIGITS[value & 63 : (value & 63) + 1] + digits
        value >>= 6
    return digits

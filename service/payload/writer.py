"""Writer: plain values as JSON text, with the interpreter held for a moment at a time.

ujson does not let other threads run until it returns: 1 MiB of small containers takes
it 30 ms. So a large value is written in pieces of a few thousand values, and between
two of them the event loop gets its turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import ujson

__all__ = ["PIECE", "encode", "write"]

PIECE: Final = 8192
"""Values that ujson writes at once (count); under 2 ms of work."""


def encode(value: object) -> str:
    """Return the text of a plain value, written at once."""
    return ujson.dumps(
        value, ensure_ascii=False, escape_forward_slashes=False, allow_nan=False
    )


def write(value: object, pause: Callable[[], object]) -> str:
    """Return the text of a plain value, written in pieces.

    Args:
        value: Scalars, and dicts, lists and tuples of these, at most 100 levels.
        pause: Called after each piece.
    """
    kind = type(value)
    if kind is dict or kind is list or kind is tuple:
        value, _ = _fold(value, pause)
        if type(value) is _Written:
            return value.text
    return encode(value)


class _Written:
    """A part of a value that is written already; ujson inserts its text."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __json__(self) -> str:
        return self.text


def _fold(container: Any, pause: Callable[[], object]) -> tuple[Any, int]:
    """Write the parts of a container that are large.

    Returns:
        The container itself if it is small; a copy, in which large parts are written;
        or all of it, written. Then, how many values are left to be written in it, at
        most `PIECE` and one for each level.
    """
    keyed = type(container) is dict
    pieces: list[str] = []
    run: list[Any] = []
    weight = 0
    changed = False
    for item in container.items() if keyed else container:
        part = item[1] if keyed else item
        kind = type(part)
        more = 1
        if kind is dict or kind is list or kind is tuple:
            folded, more = _fold(part, pause)
            if folded is not part:
                changed = True
                item = (item[0], folded) if keyed else folded
        if run and weight + more > PIECE:
            pieces.append(_members(run, keyed=keyed))
            pause()
            run, weight = [], 0
        run.append(item)
        weight += more
    if pieces:
        pieces.append(_members(run, keyed=keyed))
        text = ",".join(pieces)
        return _Written(f"{{{text}}}" if keyed else f"[{text}]"), 1
    if changed:
        return (dict(run) if keyed else run), weight + 1
    return container, weight + 1


def _members(run: list[Any], *, keyed: bool) -> str:
    """Return the text of some members, without the brackets around it."""
    return encode(dict(run) if keyed else run)[1:-1]

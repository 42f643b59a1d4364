"""One event as one line of the log: safe to write, whatever it was made of.

A line never holds what could not be meant for it: of an object that is not plain only
the type is written, a text is cut, control characters are escaped. Users, and channels
and addresses that may tell of users, are shown or hashed, as the settings say.

Nothing here raises: an event that cannot be rendered is a line that says so.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import re
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

from service.settings import LogSettings

__all__ = ["Lines"]

TEXT = 2000  # characters of one text
STACK = 20_000  # characters of a stack, which is our own code's
ITEMS = 50  # of one list or mapping
DEPTH = 3

PERSONAL = frozenset({"user", "channel", "address"})
"""Fields that may tell who somebody is; with `log.hash_users` only a hash is shown."""

_BARE = re.compile(r"[\w.:/+@#$-]+")  # needs no quotes on the console


class Lines:
    """Renders events; a processor of structlog.

    Args:
        settings: Whose `format` is "json" or "console".
        key: Hashes users.
        console: For people; else JSON.
    """

    def __init__(self, settings: LogSettings, key: bytes, *, console: bool) -> None:
        self._hashed = PERSONAL if settings.hash_users else frozenset[str]()
        self._key = key
        self._console = console

    def __call__(self, logger: Any, level: str, event: MutableMapping[str, Any]) -> str:
        """Return the line of an event."""
        try:
            return self._line(level, event)
        except Exception as error:
            # A field whose methods fail, or something like that.
            name = {"event": "a line of the log failed", "error": type(error).__name__}
            return self._line("error", name)

    def missing(self, count: int) -> str:
        """Return the line that says how many are missing before it."""
        return self._line(
            "warning", {"event": "lines of the log were dropped", "count": count}
        )

    def _line(self, level: str, event: Mapping[str, Any]) -> str:
        fields = {name: self._field(name, value) for name, value in event.items()}
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        head = {
            "time": time.replace("+00:00", "Z"),
            "level": level,
            "event": fields.pop("event", ""),
        }
        if not self._console:
            return json.dumps({**head, **fields})
        stack = fields.pop("stack", "")
        rest = "".join(f" {name}={_bare(value)}" for name, value in fields.items())
        line = f"{head['time']} {level:<8} {_escaped(str(head['event']))}{rest}"
        below = "".join(f"\n    {_escaped(row)}" for row in str(stack).splitlines())
        return line + below

    def _field(self, name: str, value: object) -> object:
        if name in self._hashed and value not in (None, ""):
            text = str(value).encode(errors="backslashreplace")
            return hashlib.blake2b(text, key=self._key, digest_size=8).hexdigest()
        return _plain(value, STACK if name == "stack" else TEXT)


def _plain(value: object, limit: int = TEXT, depth: int = DEPTH) -> object:
    """Return what JSON can say of *value*."""
    kind = type(value)
    if kind is bool or value is None:
        return value
    if kind is int:
        assert isinstance(value, int)
        return value if -(2**63) <= value < 2**64 else "<int>"
    if kind is float:
        assert isinstance(value, float)
        return value if math.isfinite(value) else str(value)
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, str):
        text = str(value)  # of a Secret, not the secret
        return text if len(text) <= limit else text[:limit] + "…"
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one, depth=depth - 1) for one in list(value)[:ITEMS]]
    if depth and kind is dict:
        assert isinstance(value, dict)
        return {
            str(_plain(name)): _plain(one, depth=depth - 1)
            for name, one in list(value.items())[:ITEMS]
        }
    return f"<{kind.__name__}>"


def _bare(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if isinstance(value, str) and not _BARE.fullmatch(text):
        return json.dumps(text)
    return text


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

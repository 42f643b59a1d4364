"""Log line formatter: one event as one line, safe to write whatever its fields are.

A line never holds text that was not meant for it: of an object that is not plain only
the type is written, a long text is cut, control characters are escaped. Users, and the
channels and addresses that may tell of users, are shown or hashed, as the settings say.

Nothing here raises: an event that cannot be formatted becomes a line that says so.
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

__all__ = ["LineFormatter"]

TEXT = 2000  # characters of one text
STACK = 20_000  # characters of a stack, whose text is our own code
ITEMS = 50  # items of one list or mapping
DEPTH = 3  # lists and mappings inside each other

PERSONAL = frozenset({"user", "channel", "address"})
"""Fields that may identify a person; with `log.hash_users` only a hash is shown."""

_BARE = re.compile(r"[\w.:/+@#$-]+")  # needs no quotes on the console


class LineFormatter:
    """Formats events; the last processor of structlog.

    Args:
        settings: Say whether users are hashed.
        key: The key of the hashes.
        console: Write lines for people; else JSON.
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
            # As a rule, a field whose own methods fail.
            name = {"event": "a line of the log failed", "error": type(error).__name__}
            return self._line("error", name)

    def missing(self, count: int) -> str:
        """Return the line that says how many lines are missing before it."""
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
    """Return *value* as plain objects that JSON can hold."""
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
        text = str(value)  # hides a Secret
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

"""Any Python object → one JSON value as text, for what Python callers publish."""

from __future__ import annotations

import ujson

from _speedups import check
from service.handlers import Raw
from service.model import RawJson

__all__ = ["dump", "dump_optional"]


def dump(value: object) -> RawJson:
    """Return *value* as JSON text.

    Raises:
        ValueError: It cannot be represented.
        TypeError: The same.
        OverflowError: The same.
    """
    if isinstance(value, Raw):
        return value.text
    text = ujson.dumps(
        value, ensure_ascii=False, escape_forward_slashes=False, allow_nan=False
    )
    return RawJson(check(text))


def dump_optional(value: object) -> RawJson | None:
    """Return *value* as JSON text, None for None."""
    return None if value is None else dump(value)

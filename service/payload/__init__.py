"""Any Python object → one JSON value as text, for what Python callers publish.

`dump` answers for everything: what is plain goes through ujson, what is not goes
through the named strategies first, and what is over budget becomes a small error
object. It keeps no state and may be called from any thread.
"""

from __future__ import annotations

from time import monotonic

from service.model import RawJson
from service.payload.serializer import Serializer

__all__ = ["dump", "dump_optional"]

_serializer = Serializer(monotonic)


def dump(value: object) -> RawJson:
    """Return *value* as strict JSON text; never raises an `Exception`.

    At most 1 MiB, 100 levels and 1.0 s: above the levels it is cut, above the others
    replaced with an error object that keeps its type and ids. The time is looked at
    between calls of the value's own methods: one that blocks cannot be interrupted.
    """
    return _serializer.dump(value)


def dump_optional(value: object) -> RawJson | None:
    """Return *value* as strict JSON text, None for None."""
    return None if value is None else _serializer.dump(value)

"""Payload serializer: any Python object to one JSON value as text.

`dump` takes every object: plain values go through ujson, others go through the named
strategies first, and a value over budget (1 MiB, 1.0 s) becomes a small error object.
It keeps no state and may be called from any thread.
"""

from __future__ import annotations

from time import monotonic

from service.core.model import RawJson
from service.payload.serializer import Serializer

__all__ = ["dump", "dump_optional"]

dump = Serializer(monotonic).dump


def dump_optional(value: object) -> RawJson | None:
    """Return *value* as strict JSON text, None for None; never raises an `Exception`.

    See `Serializer.dump`.
    """
    return None if value is None else dump(value)

"""Payload serializer: any Python object to one JSON value as text.

`dump` takes every object: plain values go through ujson, others go through the named
strategies first, and a value over budget (1 MiB, 1.0 s) becomes a small error object.
It keeps no state and may be called from any thread. The service itself encodes with
`encoder`, which keeps large and slow values off the event loop.
"""

from __future__ import annotations

from time import monotonic

from service.payload.serializer import Serializer

__all__ = ["dump"]

dump = Serializer(monotonic).dump

"""Serializer: writes a value as it is, else by strategies, else as an error object."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import islice
from math import isfinite
from typing import Any, Final
from uuid import UUID

from service.core.hooks import Raw
from service.core.model import RawJson, size_of
from service.payload.budget import Budget, OverBudget
from service.payload.strategies import stored
from service.payload.walk import DEPTH, INTEGER_MAX, INTEGER_MIN, Walk, clean
from service.payload.writer import PIECE, encode, write

__all__ = ["SECONDS", "Serializer"]

SIZE: Final = 1024 * 1024  # bytes; more would not fit a connection's queue
SECONDS: Final = 1.0

_SMALL: Final = 8192  # values and characters; under 1 ms of work
_INERT: Final = (datetime, date, time, timedelta, UUID, Decimal)
"""Types without code of the application, which are small whatever their value."""

_KEPT: Final = frozenset(("type", "event", "id", "seq", "timestamp"))
_SEARCHED: Final = 1000  # members of an object that are searched for ids
_KEPT_COUNT: Final = 16
_KEPT_LENGTH: Final = 256  # characters of a kept string
_LAST_RESORT: Final = RawJson('{"error":{"reason":"failure"}}')


class Serializer:
    """Makes JSON text of any object, within a budget.

    Args:
        clock: Gives monotonic seconds.
        size: Bytes of JSON; more becomes an error object.
        seconds: Time of the work; more becomes an error object.
        pause: Called every few thousand values, and after an object's own methods.
    """

    __slots__ = ("_clock", "_pause", "_seconds", "_size")

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        size: int = SIZE,
        seconds: float = SECONDS,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        self._clock = clock
        self._size = size
        self._seconds = seconds
        self._pause = pause

    def is_small(self, value: object) -> bool:
        """Tell whether `dump` takes under 1 ms, whatever happens.

        That is so for few values of types that run no code of the application.
        """
        kind = type(value)
        if kind is Raw:
            return True
        try:
            plain = kind is dict or kind is list or kind is tuple
            return _measure(value if plain else [value], _SMALL, 1, _INERT) >= 0
        except Exception:
            return False

    def dump(
        self, value: object, walking: Callable[[Walk], object] | None = None
    ) -> RawJson:
        """Return *value* as strict JSON text; never raises an `Exception`.

        Levels deeper than 100 are cut. A value over its bytes or its time is replaced
        by an error object that keeps the value's type and ids. The clock is read
        between calls of the value's own methods: one that blocks cannot be interrupted.

        Args:
            value: Any object.
            walking: Called with the conversion of a value that is not plain, for
                `give_up`.
        """
        kind = type(value)
        if kind is Raw:
            return value.text  # type: ignore[attr-defined, no-any-return]
        try:
            plain = kind is dict or kind is list or kind is tuple
            room = _measure(value if plain else [value], self._size, 1)
            if room >= 0:
                if self._size - room <= PIECE:
                    text = encode(value)
                else:
                    text = write(value, self._pause)
                if size_of(text) <= self._size:
                    return RawJson(text)
        except Exception:
            # Not plain; or a lone surrogate, which ujson passes and UTF-8 does not.
            pass
        try:
            return self._walk(value, walking)
        except (
            Exception
        ):  # changed by another thread meanwhile, or the end of the stack
            return _LAST_RESORT

    def give_up(self, value: object, walk: Walk | None) -> RawJson:
        """Return the error object for a value whose `dump` takes too long elsewhere."""
        top = walk.top if walk is not None else {}
        if not top and type(value) is dict:
            top = value
        try:
            return self._minimal(top, "time")
        except Exception:  # changed by the other thread meanwhile
            return _LAST_RESORT

    def _walk(self, value: object, walking: Callable[[Walk], object] | None) -> RawJson:
        budget = Budget(
            self._clock, size=self._size, seconds=self._seconds, pause=self._pause
        )
        walk = Walk(budget)
        if walking is not None:
            walking(walk)
        try:
            text = write(walk.value(value, 1), self._pause)
            budget.check_time()
            if size_of(text) <= self._size:
                return RawJson(text)
            reason = "size"
        except OverBudget as over:
            reason = over.reason
        except Exception:
            reason = "failure"
        return self._minimal(walk.top, reason)

    def _minimal(self, top: dict[object, object], reason: str) -> RawJson:
        """Return the error object that replaces a value.

        Args:
            top: The value, if it is a JSON object; else empty.
            reason: ``size``, ``time`` or ``failure``.
        """
        kept: dict[str, object] = {}
        for key, value in islice(top.items(), _SEARCHED):
            if type(key) is not str or len(key) > _KEPT_LENGTH:
                continue
            if key in _KEPT or key.endswith("_id"):
                brief = _brief(value)
                if brief is not None:
                    kept[clean(key)] = brief
                if len(kept) == _KEPT_COUNT:
                    break
        error: dict[str, object] = {"reason": reason}
        if reason == "size":
            error["limit"] = self._size
        elif reason == "time":
            error["limit"] = self._seconds
        kept["error"] = error
        return RawJson(encode(kept))


def _measure(value: Any, room: int, depth: int, others: tuple[type, ...] = ()) -> int:
    """Check that ujson's text for a container will be strict, exact and bounded.

    ujson itself repeats keys that become equal, rounds Decimal to a float, writes a
    NamedTuple as an array, inserts the result of `__json__` as it is, nests to 1,024,
    and writes out a few lists that hold each other many times until memory ends. Hence
    exact types, and a count. Scalars are checked without a call for each, which would
    cost as much as all the rest.

    Args:
        value: A list, tuple or dict.
        room: Values and characters of text that may come.
        depth: The level of the value, from 1.
        others: Types that are let through beside the plain ones.

    Returns:
        The room left; negative if the last strings were too long.

    Raises:
        ValueError: The value is not plain, or the room is too small.
    """
    room -= len(value)
    if depth > DEPTH or room < 0:
        raise ValueError("too deep or too large")
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise ValueError("not plain")
            room -= len(key)
        value = value.values()
    for item in value:
        kind = type(item)
        if kind is str:
            room -= len(item)
        elif kind is int:
            if not INTEGER_MIN <= item <= INTEGER_MAX:
                raise ValueError("not plain")
        elif kind is dict or kind is list or kind is tuple:
            room = _measure(item, room, depth + 1, others)
        elif (
            kind is not float
            and kind is not bool
            and item is not None
            # By identity: a metaclass may define equality.
            and not any(kind is other for other in others)
        ):
            raise ValueError("not plain")
    return room


def _brief(value: Any) -> str | int | float | None:
    """Return an id, a name or a time for the error object; None for other values.

    No method of the value is called, since it may be the slow one.
    """
    value = stored(value)
    kind = type(value)
    if kind is str and len(value) <= _KEPT_LENGTH:
        return clean(value)
    if kind is int and INTEGER_MIN <= value <= INTEGER_MAX:
        return int(value)
    if kind is float and isfinite(value):
        return float(value)
    return None

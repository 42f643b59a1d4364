"""Conversion of any object to a plain copy, value by value, for ujson to write."""

from __future__ import annotations

from collections.abc import Callable
from heapq import merge
from typing import Any, Final

import ujson

from service.payload.budget import Budget
from service.payload.strategies import Unordered, simplify
from service.payload.writer import PIECE

__all__ = ["DEPTH", "INTEGER_MAX", "INTEGER_MIN", "Walk", "clean"]

DEPTH: Final = (
    100  # containers inside each other, the outermost is 1; as the codec reads
)
INTEGER_MIN: Final = -(2**63)  # readers with integers of 64 bits can hold these
INTEGER_MAX: Final = 2**64 - 1

_CYCLE: Final = "<cycle>"
_DEEP: Final = "<too deep>"
_UNSERIALIZABLE: Final = "<unserializable>"

_DECIMAL_BITS: Final = 2048  # str() may be set to refuse integers from 641 digits on
_STEPS: Final = 8  # strategies in a row until a value is plain
_INFINITY: Final = float("inf")


class Walk:
    """One conversion.

    Attributes:
        top: The outermost value once it is a dict; else empty.
    """

    __slots__ = ("_budget", "_path", "top")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._path: set[int] = set()  # ids of the objects around the current one
        self.top: dict[object, object] = {}

    def value(self, value: Any, depth: int) -> Any:
        """Return *value* as str, int, float, bool, None, list or dict.

        Args:
            value: Any object; it is not changed, but an iterator is consumed.
            depth: The level of the value if it is a container, from 1.

        Raises:
            OverBudget: The value needs more bytes or more time.
        """
        kind = type(value)
        if _is_scalar(kind):
            return self._scalar(value)
        if _is_container(kind):
            return self._container(value, depth)
        # Kept alive: the path holds ids, which are valid while the objects live.
        steps: list[object] = []
        while not _is_container(kind):
            if id(value) in self._path:
                return _CYCLE
            if len(steps) == _STEPS:
                return _UNSERIALIZABLE
            steps.append(value)
            found = simplify(value, self._budget)
            self._budget.check_time_soon()
            if found is None:
                return _UNSERIALIZABLE
            (value,) = found
            kind = type(value)
            if _is_scalar(kind):
                return self._scalar(value)
        self._path.update(map(id, steps))
        try:
            return self._container(value, depth)
        finally:
            self._path.difference_update(map(id, steps))

    def _container(self, value: Any, depth: int) -> Any:
        if depth == 1 and type(value) is dict:
            self.top = value
        if id(value) in self._path:
            return _CYCLE
        if depth > DEPTH:
            return _DEEP
        self._budget.need(2 * len(value))
        self._path.add(id(value))
        try:
            # Copies, since a method of an item may change its container.
            if type(value) is dict:
                keys, values = list(value), list(value.values())
                names = self._names(keys, depth)
                return dict(zip(names, self._items(values, depth), strict=True))
            items = self._items(list(value), depth)
            if type(value) is Unordered:
                _sort(items)
            return items
        finally:
            self._path.discard(id(value))

    def _items(self, items: list[Any], depth: int) -> list[Any]:
        """Convert the items of a container of level *depth*."""
        # Common scalars have no call each, which would take three times as long; so
        # their bytes are spent together, once all are known.
        size = 2
        for place, item in enumerate(items):
            kind = type(item)
            if kind is str and item.isascii():
                size += len(item) + 3
            elif kind is int and INTEGER_MIN <= item <= INTEGER_MAX:
                size += 2
            elif item is None or kind is bool:
                size += 5
            elif kind is float and -_INFINITY < item < _INFINITY:
                size += 4
            elif kind is dict or kind is list:
                items[place] = self._container(item, depth + 1)
                size += 1
            else:
                items[place] = self.value(item, depth + 1)
                size += 1
        self._budget.spend(size - 1 if items else size, len(items))
        return items

    def _names(self, keys: list[Any], depth: int) -> list[str]:
        """Convert the keys of an object of level *depth*, each to a different name."""
        size = 0
        for key in keys:
            if type(key) is not str or not key.isascii():
                break
            size += len(key) + 3
        else:
            self._budget.spend(size, len(keys))
            return keys
        free = _Names(keys).free
        names = []
        for key in keys:
            name = self._key(key, depth)
            names.append(name if name is key else free(name))
        return names

    def _key(self, key: object, depth: int) -> str:
        """Return the JSON text of a key, without quotes if it is a string."""
        plain = self.value(key, depth + 1)
        if type(plain) is str:
            return plain
        return ujson.dumps(plain, ensure_ascii=False, escape_forward_slashes=False)

    def _scalar(self, value: Any) -> str | int | float | None:
        kind = type(value)
        if kind is str:
            self._budget.spend(len(value) + 2)
            return value if value.isascii() else clean(value)
        if kind is not int:
            self._budget.spend(1)
            if kind is not float or -_INFINITY < value < _INFINITY:
                return value  # type: ignore[no-any-return]
            return None
        if INTEGER_MIN <= value <= INTEGER_MAX:
            self._budget.spend(1)
            return value  # type: ignore[no-any-return]
        bits = value.bit_length()
        self._budget.spend(bits // 4)
        # Decimal takes quadratic time.
        return str(value) if bits <= _DECIMAL_BITS else hex(value)


# By identity and not by `in`: a metaclass may define equality.


def _is_scalar(kind: type) -> bool:
    return (
        kind is str
        or kind is int
        or kind is float
        or kind is bool
        or kind is type(None)
    )


def _is_container(kind: type) -> bool:
    return kind is dict or kind is list or kind is tuple or kind is Unordered


class _Names:
    """The names taken in one object: string keys keep theirs, others are numbered."""

    __slots__ = ("_numbers", "_taken")

    def __init__(self, keys: list[Any]) -> None:
        self._taken = {key for key in keys if type(key) is str}
        self._numbers: dict[str, int] = {}

    def free(self, wanted: str) -> str:
        """Return *wanted*, followed by ``#2`` or a higher number if it is taken."""
        name = wanted
        number = self._numbers.get(wanted, 1)
        while name in self._taken:
            number += 1
            name = f"{wanted}#{number}"
        self._numbers[wanted] = number
        self._taken.add(name)
        return name


def clean(text: str) -> str:
    """Return *text* itself, or a copy with U+FFFD for each lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # Through UTF-16: two halves that make a pair become one character.
        halves = text.encode("utf-16-le", "surrogatepass")
        return halves.decode("utf-16-le", "replace")
    return text


def _sort(items: list[Any]) -> None:
    """Sort the items of a set, for the same order in every run.

    In pieces, since the interpreter does nothing else while it sorts a list.
    """
    try:
        items[:] = merge(*_sorted_runs(items, None))
    except TypeError:  # of several kinds
        items[:] = merge(*_sorted_runs(items, ujson.dumps), key=ujson.dumps)


def _sorted_runs(items: list[Any], key: Callable[[Any], str] | None) -> list[list[Any]]:
    return [
        sorted(items[start : start + PIECE], key=key)
        for start in range(0, len(items), PIECE)
    ]

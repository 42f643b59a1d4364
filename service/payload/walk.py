"""From any object to what ujson writes strictly: a copy, made value by value."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import ujson

from service.payload.budget import Budget
from service.payload.strategies import Unordered, simplify

__all__ = [
    "CYCLE",
    "DEEP",
    "DEPTH",
    "INTEGER_MAX",
    "INTEGER_MIN",
    "UNSERIALIZABLE",
    "Walk",
    "clean",
]

_Pairs: TypeAlias = list[tuple[object, object]]

DEPTH: Final = 100  # containers inside each other, outermost 1; as the codec reads
INTEGER_MIN: Final = -(2**63)  # what readers with integers of 64 bits can hold
INTEGER_MAX: Final = 2**64 - 1

CYCLE: Final = "<cycle>"
DEEP: Final = "<too deep>"
UNSERIALIZABLE: Final = "<unserializable>"

_DECIMAL_BITS: Final = 2048  # str() may be set to refuse integers from 641 digits on
_STEPS: Final = 8  # strategies one after the other until a value is plain
_CONTAINERS: Final = frozenset((dict, list, tuple, Unordered))
_PLAIN: Final = _CONTAINERS | {str, int, float, bool, type(None)}
_INFINITY: Final = float("inf")


class Walk:
    """One conversion.

    Attributes:
        top: The outermost value, if it came to be a dict.
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
            OverBudget: It needs more bytes or more time than it may.
        """
        kind = type(value)
        if kind is str:
            return self._text(value)
        if kind is int:
            return self._integer(value)
        self._budget.spend(1)
        if kind is bool or value is None:
            return value
        if kind is float:
            return value if -_INFINITY < value < _INFINITY else None
        if kind in _CONTAINERS:
            return self._container(value, depth)
        return self._other(value, depth)

    def _other(self, value: Any, depth: int) -> Any:
        # The list keeps the steps alive: on the path are ids, good while they live.
        steps: list[object] = []
        try:
            while type(value) not in _PLAIN:
                if id(value) in self._path:
                    return CYCLE
                if len(steps) == _STEPS:
                    return UNSERIALIZABLE
                self._path.add(id(value))
                steps.append(value)
                found = simplify(value, self._budget)
                self._budget.look_soon()
                if found is None:
                    return UNSERIALIZABLE
                (value,) = found
            if type(value) in _CONTAINERS:
                return self._container(value, depth)
            return self.value(value, depth)
        finally:
            self._path.difference_update(map(id, steps))

    def _container(self, value: Any, depth: int) -> Any:
        if depth == 1 and type(value) is dict:
            self.top = value
        if id(value) in self._path:
            return CYCLE
        if depth > DEPTH:
            return DEEP
        self._budget.need(2 * len(value))
        self._path.add(id(value))
        try:
            if type(value) is dict:
                return self._object(list(value.items()), depth)
            # A copy, since a method of an item may change what it is in.
            items = [self.value(item, depth + 1) for item in list(value)]
            if type(value) is Unordered:
                _sort(items)
            return items
        finally:
            self._path.discard(id(value))

    def _object(self, pairs: _Pairs, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        names: _Names | None = None
        for key, item in pairs:
            name = self._text(key) if type(key) is str else self._key(key, depth)
            if name is not key:
                if names is None:
                    names = _Names(pairs)
                name = names.free(name)
            result[name] = self.value(item, depth + 1)
        return result

    def _key(self, key: object, depth: int) -> str:
        """Return the JSON text of a key, without quotes if that is a string."""
        plain = self.value(key, depth + 1)
        return plain if type(plain) is str else ujson.dumps(plain, ensure_ascii=False)

    def _text(self, value: str) -> str:
        self._budget.spend(len(value) + 2)
        return value if value.isascii() else clean(value)

    def _integer(self, value: int) -> int | str:
        if INTEGER_MIN <= value <= INTEGER_MAX:
            self._budget.spend(1)
            return value
        bits = value.bit_length()
        self._budget.spend(bits // 4)
        # Decimal takes quadratic time.
        return str(value) if bits <= _DECIMAL_BITS else hex(value)


class _Names:
    """The names that are taken in one object: strings keep theirs, others give way."""

    __slots__ = ("_numbers", "_taken")

    def __init__(self, pairs: _Pairs) -> None:
        self._taken = {key for key, _ in pairs if type(key) is str}
        self._numbers: dict[str, int] = {}

    def free(self, wanted: str) -> str:
        """Return *wanted*, with ``#2`` or a higher number behind it if it is taken."""
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
        # By way of UTF-16: two halves that are a pair become one character.
        halves = text.encode("utf-16-le", "surrogatepass")
        return halves.decode("utf-16-le", "replace")
    return text


def _sort(items: list[Any]) -> None:
    """Give the items of a set the same order in every run."""
    try:
        items.sort()
    except TypeError:  # of several kinds
        items.sort(key=ujson.dumps)

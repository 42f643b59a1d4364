"""Random objects of every kind, and a picture of one to tell whether it changed."""

from __future__ import annotations

import enum
import math
import random
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import UUID

from tests.payload.specimens import (
    SPECIMENS,
    Attrs,
    Colour,
    Event,
    Level,
    Mode,
    Point,
    Real,
    Struct,
    Text,
    ToDict,
    Whole,
)

_PIECES = ["a", "é", "世", "🚀", "\ud800", "\udfff", '"', "\\", "/", "\n", "\x00", " "]
_LEAVES = [pair[0] for pairs in SPECIMENS.values() for pair in pairs]
_LEAVES += [*Colour, *Level, *Mode, ToDict, enum, print]


class Broken:
    """Raises from every method that a serializer could call."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def to_dict(self) -> object:
        raise ValueError("to_dict")

    def __json__(self) -> object:
        raise OSError("json")

    def __iter__(self) -> Iterator[object]:
        raise LookupError("iter")

    def __repr__(self) -> str:
        raise RuntimeError("repr")


class Objects:
    """A source of random objects.

    Args:
        seed: The same seed gives the same objects, in the same order.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._parents: list[Any] = []

    def make(self, depth: int = 0) -> Any:
        """Return the next object."""
        if depth == 0:
            self._parents = []
        if depth < 5 and self.random.random() < 0.6 - 0.1 * depth:
            return self._container(depth)
        if self._parents and self.random.random() < 0.05:
            return self.random.choice(self._parents)  # a cycle, or a shared part
        return self._leaf()

    def _leaf(self) -> Any:
        choice = self.random
        match choice.randrange(16):
            case 1:
                return choice.randint(-(2 ** choice.randrange(1, 70)), 2**70)
            case 2:
                return choice.choice(
                    [None, True, False, math.nan, math.inf, -0.0, 5e-324, 1.8e308]
                )
            case 3:
                return choice.uniform(-1, 1) * 10 ** choice.randrange(-300, 300)
            case 4:
                return self._datetime()
            case 5:
                return choice.randbytes(choice.randrange(20))
            case 6:
                return UUID(int=choice.getrandbits(128))
            case 7:
                return Decimal(choice.getrandbits(70)).scaleb(choice.randrange(-30, 30))
            case 8:
                return choice.choice([Text, ValueError])(self._text())
            case 9:
                return choice.choice([Whole(2**80), Real("inf"), object(), Broken()])
            case 10 | 11 | 12:
                return choice.choice(_LEAVES)
        return self._text()

    def _text(self) -> str:
        return "".join(self.random.choices(_PIECES, k=self.random.randrange(8)))

    def _datetime(self) -> Any:
        moment = datetime(2000, 1, 1) + timedelta(seconds=self.random.random() * 10**9)
        return self.random.choice(
            [moment, moment.replace(tzinfo=UTC), moment.date(), moment.time()]
        )

    def _key(self) -> Any:
        key = self._leaf()
        try:
            hash(key)
        except Exception:
            return (self._text(), 1)
        return key

    def _several(self, depth: int) -> list[Any]:
        return [self.make(depth + 1) for _ in range(self.random.randrange(6))]

    def _container(self, depth: int) -> Any:
        kind = self.random.randrange(16)
        if kind < 4:
            members: Any = self.random.choice(
                [dict, OrderedDict, UserDict, lambda: defaultdict(list)]
            )()
            self._parents.append(members)
            for item in self._several(depth):
                members[self._text() if kind < 3 else self._key()] = item
            return members
        if kind < 6:
            items: Any = self.random.choice([list, deque])()
            self._parents.append(items)
            items.extend(self._several(depth))
            return items
        inner = self._several(depth)
        if kind == 6:
            return tuple(inner)
        if kind == 7:
            keys = {self._key() for _ in inner}
            return self.random.choice([set, frozenset])(keys)
        if kind == 8:
            return Point(1, inner)
        if kind == 9:
            return Event(self._text(), self._datetime(), inner)  # type: ignore[arg-type]
        if kind == 10:
            return Attrs(1, inner)
        if kind == 11:
            return Struct(1, inner)
        if kind == 12:
            return MappingProxyType(dict(enumerate(inner)))
        if kind == 13:
            held = ToDict(None)
            self._parents.append(held)
            held.held = inner
            return held
        return inner


def picture(value: Any, around: tuple[int, ...] = ()) -> object:
    """Return what tells whether *value* or anything in it was changed."""
    kind = type(value)
    if id(value) in around:
        return ("around", id(value))
    around = (*around, id(value))
    match value:
        case _ if kind is Broken:
            return ("broken", id(value))
        case dict() | UserDict() | MappingProxyType():
            pairs = [(picture(k, around), picture(v, around)) for k, v in value.items()]
            return (kind, id(value), pairs)
        case list() | tuple() | deque() | set() | frozenset():
            return (kind, id(value), [picture(item, around) for item in value])
        case bytearray() | memoryview():
            return (kind, id(value), bytes(value))
        case date() | time() | int() | float() | str() | bytes() | Decimal():
            return (kind, id(value), repr(value))
    fields = list(getattr(value, "__dict__", {}).items()) if kind is not type else []
    for name in getattr(kind, "__slots__", ()) or getattr(
        kind, "__struct_fields__", ()
    ):
        if hasattr(value, name):
            fields.append((name, getattr(value, name)))
    if kind.__module__ != "specimens":
        return (kind, id(value))
    return (kind, id(value), [(n, picture(item, around)) for n, item in fields])

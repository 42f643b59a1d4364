"""Named strategies: each makes one kind of object simpler, until it is plain.

A strategy's result may need another strategy, and so may the members of the result. A
strategy that raises is passed over for the next that applies. Strategies go by the type
of an object, never by its attributes, which an object may make up.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
from base64 import b64encode
from collections import UserString
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from itertools import islice
from types import CoroutineType
from typing import Any, Final, NamedTuple
from uuid import UUID

from _speedups import check
from service.core.hooks import Raw
from service.payload.budget import Budget, OverBudget

__all__ = ["STRATEGIES", "Unordered", "simplify", "stored"]

_TRUNCATED: Final = "<truncated>"
_FAILED: Final = "<failed>"

_ITEMS: Final = 10_000  # taken from an iterable without a length, or a range
_TEXT: Final = 1_000  # characters of the text that stands for an object
_TYPES: Final = 1_024  # types whose strategies are cached
_ADDRESSES: Final = (
    ipaddress.IPv4Address,
    ipaddress.IPv6Address,
    ipaddress.IPv4Network,
    ipaddress.IPv6Network,
)

_address: Final = re.compile(r" at 0x[0-9A-Fa-f]+")


class Strategy(NamedTuple):
    """One row of the table.

    Attributes:
        name: The name in docs/payload.md.
        applies: Tells whether the objects of a type are of this kind.
        convert: Makes an object simpler, within a budget; may raise anything.
    """

    name: str
    applies: Callable[[type], bool]
    convert: Callable[[Any, Budget], object]


class Unordered(list[object]):
    """Items without an order."""


def simplify(value: object, budget: Budget) -> tuple[object] | None:
    """Return the result of the first strategy that succeeds, in a tuple; else None.

    Raises:
        OverBudget: A strategy takes too long, or its result is too large.
    """
    kind: Any = type(value)
    try:
        strategies = _strategies_of(kind)
    except Exception:  # a metaclass whose methods fail
        strategies = STRATEGIES[-1:]
    for strategy in strategies:
        try:
            simpler = strategy.convert(value, budget)
        except OverBudget:
            raise
        except Exception:
            budget.check_time()
            continue
        if type(simpler) is not kind:
            return (simpler,)
    return None


def stored(value: Any) -> object:
    """Return the value of an Enum or a UUID, without its methods; others as is."""
    if issubclass(type(value), Enum):
        value = value._value_
    return str(value) if type(value) is UUID else value


@lru_cache(_TYPES)
def _strategies_of(kind: type) -> tuple[Strategy, ...]:
    return tuple(each for each in STRATEGIES if each.applies(kind))


def _is(*kinds: type) -> Callable[[type], bool]:
    return lambda kind: issubclass(kind, kinds)


def _has(name: str) -> Callable[[type], bool]:
    return lambda kind: hasattr(kind, name)


def _call(method: str) -> Callable[[Any, Budget], object]:
    def convert(value: Any, _: Budget) -> object:
        result = getattr(value, method)()
        if isinstance(result, CoroutineType):
            result.close()  # else it warns that it was never awaited
            raise TypeError(f"{method} is asynchronous")
        return result

    return convert


def _attributes(value: object, names: Iterable[str]) -> dict[str, object]:
    found = {}
    for name in names:
        with suppress(AttributeError):  # never set, or deleted
            found[name] = getattr(value, name)
    return found


def _raw(value: Raw, budget: Budget) -> object:
    return _parse(value.text, budget)


def _json(value: Any, budget: Budget) -> object:
    # ujson takes the result for JSON text; other libraries, for an object.
    result = _call("__json__")(value, budget)
    return _parse(result, budget) if isinstance(result, str | bytes) else result


def _parse(text: str | bytes, budget: Budget) -> object:
    budget.need(len(text))  # as it is, with its spaces: nothing interrupts the parser
    return json.loads(check(text))


def _enum(value: Enum, _: Budget) -> object:
    return value.value


def _scalar(value: Any, _: Budget) -> object:
    # The methods of the base: a subclass may have broken its own.
    for base in (str, int, float):
        if isinstance(value, base):
            return getattr(base, f"__{base.__name__}__")(value)
    return value.data


def _datetime(value: datetime | date | time, _: Budget) -> object:
    text = value.isoformat()
    return f"{text[:-6]}Z" if text.endswith("+00:00") else text


def _timedelta(value: timedelta, _: Budget) -> object:
    return value.total_seconds()


def _to_text(value: object, _: Budget) -> object:
    return str(value)


def _decimal(value: Decimal, _: Budget) -> object:
    return str(value) if value.is_finite() else None


def _bytes(value: bytes | bytearray | memoryview, budget: Budget) -> object:
    view = memoryview(value)
    budget.need(view.nbytes * 4 // 3)
    return b64encode(view.tobytes()).decode("ascii")


def _set(value: set[object] | frozenset[object], budget: Budget) -> object:
    budget.need(2 * len(value))
    return Unordered(value)


def _namedtuple(value: Any, _: Budget) -> object:
    return dict(zip(type(value)._fields, tuple(value), strict=True))


def _dataclass(value: Any, _: Budget) -> object:
    return _attributes(value, [each.name for each in dataclasses.fields(value)])


def _attrs(value: Any, _: Budget) -> object:
    return _attributes(value, [each.name for each in type(value).__attrs_attrs__])


def _struct(value: Any, _: Budget) -> object:
    return _attributes(value, type(value).__struct_fields__)


def _exception(value: BaseException, _: Budget) -> object:
    return {"type": type(value).__name__, "message": str(value)[:_TEXT]}


def _path(value: Any, _: Budget) -> object:
    path = value.__fspath__()
    return path.decode(errors="replace") if isinstance(path, bytes) else path


def _array(value: Any, budget: Budget) -> object:
    size = getattr(value, "size", 1)
    budget.need(2 * size if type(size) is int else 1)
    if value.dtype.kind in "mM":  # nanoseconds would become integers
        value = value.astype(f"{value.dtype.kind}8[us]")
    return value.tolist()


def _mapping(value: Mapping[object, object], budget: Budget) -> object:
    pairs = _take(value.items(), budget)
    if pairs[-1:] in ([_TRUNCATED], [_FAILED]):
        pairs[-1] = (pairs[-1], True)
    return dict(pairs)


def _iterable(value: Iterable[object], budget: Budget) -> object:
    return _take(value, budget)


def _take(value: Iterable[Any], budget: Budget) -> list[Any]:
    """Return the items, with a marker behind them if there were more."""
    kind = type(value)
    sized = hasattr(kind, "__len__") and kind is not range
    bound = len(value) if sized else _ITEMS  # type: ignore[arg-type]
    budget.need(2 * bound)
    taken: list[Any] = []
    iterator = iter(value)
    try:
        for item in islice(iterator, bound if sized else bound + 1):
            taken.append(item)
            budget.check_time()
    except OverBudget:
        raise
    except Exception:
        if not taken:
            raise
        return [*taken, _FAILED]
    if len(taken) > bound:
        taken[bound] = _TRUNCATED
    return taken


def _iterates(kind: type) -> bool:
    # Neither classes, nor objects whose iteration may block or awaits.
    return (
        issubclass(kind, Iterable)
        and not issubclass(kind, type | Awaitable)
        and not hasattr(kind, "read")
    )


def _text(value: object, _: Budget) -> object:
    kind = type(value)
    if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
        return f"<{kind.__module__}.{kind.__qualname__}>"
    text = str(value)
    if len(text) > _TEXT:
        text = text[: _TEXT - 1] + "…"
    return _address.sub("", text)


STRATEGIES: Final = (
    Strategy("raw", _is(Raw), _raw),
    Strategy("__json__", _has("__json__"), _json),
    Strategy("to_dict", _has("to_dict"), _call("to_dict")),
    Strategy("model_dump", _has("model_dump"), _call("model_dump")),
    Strategy("enum", _is(Enum), _enum),
    Strategy("scalar", _is(str, int, float, UserString), _scalar),
    Strategy("datetime", _is(date, time), _datetime),  # a datetime is a date
    Strategy("timedelta", _is(timedelta), _timedelta),
    Strategy("uuid", _is(UUID), _to_text),
    Strategy("decimal", _is(Decimal), _decimal),
    Strategy("bytes", _is(bytes, bytearray, memoryview), _bytes),
    Strategy("set", _is(set, frozenset), _set),
    Strategy(
        "namedtuple",
        lambda kind: issubclass(kind, tuple) and hasattr(kind, "_fields"),
        _namedtuple,
    ),
    Strategy("dataclass", _has("__dataclass_fields__"), _dataclass),
    Strategy("attrs", _has("__attrs_attrs__"), _attrs),
    Strategy("struct", _has("__struct_fields__"), _struct),
    Strategy("exception", _is(BaseException), _exception),
    Strategy("path", _has("__fspath__"), _path),
    Strategy("address", _is(*_ADDRESSES), _to_text),
    Strategy(
        "array", lambda kind: hasattr(kind, "dtype") and hasattr(kind, "tolist"), _array
    ),
    Strategy("mapping", _is(Mapping), _mapping),
    Strategy("iterable", _iterates, _iterable),
    Strategy("text", lambda kind: True, _text),
)

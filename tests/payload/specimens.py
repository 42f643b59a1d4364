"""One object of each kind that the strategies convert, with its result."""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import pathlib
import types
import uuid
from collections import Counter, OrderedDict, UserString, deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import attrs
import msgspec
import pydantic

from service.core.hooks import Raw
from service.core.model import RawJson


class Colour(enum.Enum):
    RED = 1
    WHEN = date(2024, 2, 29)


class Level(enum.IntEnum):
    HIGH = 3


class Mode(enum.StrEnum):
    LIVE = "live"


class Flag(enum.Flag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: int
    y: Any


@dataclasses.dataclass
class Event:
    type: str
    at: datetime
    parent: Event | None = None


@dataclasses.dataclass(slots=True)
class Unset:
    a: int = dataclasses.field(init=False)
    b: int = 2


@attrs.define
class Attrs:
    a: int
    _b: object = None


class Struct(msgspec.Struct):
    a: int
    b: object = None


class Model(pydantic.BaseModel):
    id: uuid.UUID
    at: datetime
    key: pydantic.SecretStr
    nested: Model | None = None


class ToDict:
    def __init__(self, value: object) -> None:
        self.held = value

    def to_dict(self) -> object:
        return {"held": self.held}


class JsonText:
    def __json__(self) -> str:
        return ' {"a": [1, 2.50]}\n'


class JsonObject:
    def __json__(self) -> object:
        return {"at": date(2024, 2, 29)}


class Text(str):
    def __str__(self) -> str:
        return "not this"


class Whole(int):
    def __repr__(self) -> str:
        return "not this"

    __str__ = __repr__


class Real(float):
    def __repr__(self) -> str:
        return "not this"


class DType:
    kind = "f"


class Array:
    """The attributes of NumPy's arrays and scalars that the strategy reads."""

    dtype = DType()

    def __init__(self, *values: object) -> None:
        self._values = values
        self.size = len(values)

    def tolist(self) -> object:
        return list(self._values) if len(self._values) > 1 else self._values[0]


class Shown:
    def __str__(self) -> str:
        return f"shown by {object.__repr__(self)}"


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"/a\xff"


class Plain:
    pass


NOON = datetime(2024, 2, 29, 12, 0, 0, 5)
EAST = timezone(timedelta(hours=5, minutes=30))
ID = uuid.UUID("0192f0c1-7d4e-7000-8000-000000000001")
V4, V6 = ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("::1")

SPECIMENS: dict[str, list[tuple[Any, Any]]] = {
    "raw": [([Raw(RawJson('{"a": 1}'))], [{"a": 1}])],
    "__json__": [
        (JsonText(), {"a": [1, 2.5]}),
        (JsonObject(), {"at": "2024-02-29"}),
    ],
    "to_dict": [(ToDict({ID}), {"held": [str(ID)]})],
    "model_dump": [
        (
            Model(id=ID, at=NOON, key="x", nested=Model(id=ID, at=NOON, key="y")),
            {
                "id": str(ID),
                "at": "2024-02-29T12:00:00.000005",
                "key": "**********",
                "nested": {
                    "id": str(ID),
                    "at": "2024-02-29T12:00:00.000005",
                    "key": "**********",
                    "nested": None,
                },
            },
        )
    ],
    "enum": [
        (Colour.RED, 1),
        (Colour.WHEN, "2024-02-29"),
        (Level.HIGH, 3),
        (Mode.LIVE, "live"),
        (Flag.A | Flag.B, 3),
    ],
    "scalar": [
        (Text("text"), "text"),
        (Whole(7), 7),
        (Real(0.5), 0.5),
        (Real("nan"), None),
        (UserString("user"), "user"),
    ],
    "datetime": [
        (NOON, "2024-02-29T12:00:00.000005"),
        (NOON.replace(tzinfo=UTC), "2024-02-29T12:00:00.000005Z"),
        (NOON.replace(tzinfo=EAST), "2024-02-29T12:00:00.000005+05:30"),
        (date(2024, 2, 29), "2024-02-29"),
        (time(12, 30), "12:30:00"),
        (time(12, 30, tzinfo=UTC), "12:30:00Z"),
    ],
    "timedelta": [(timedelta(days=-1, microseconds=1), -86399.999999)],
    "uuid": [(ID, "0192f0c1-7d4e-7000-8000-000000000001")],
    "decimal": [
        (Decimal("0.10000000000000000000001"), "0.10000000000000000000001"),
        (Decimal("1E+400"), "1E+400"),
        (Decimal("NaN"), None),
        (Decimal("sNaN"), None),
        (Decimal("-Infinity"), None),
    ],
    "bytes": [
        (b"\x00\xff", "AP8="),
        (bytearray(b"abc"), "YWJj"),
        (memoryview(b"abcdef")[::2], "YWNl"),
    ],
    "set": [
        ({10, 9, 100}, [9, 10, 100]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({"a", 1, None}, ["a", 1, None]),
        ({(2, 1), (1, 2)}, [[1, 2], [2, 1]]),
    ],
    "namedtuple": [(Point(1, Point(2, None)), {"x": 1, "y": {"x": 2, "y": None}})],
    "dataclass": [
        (
            Event("a", NOON, Event("b", NOON)),
            {
                "type": "a",
                "at": "2024-02-29T12:00:00.000005",
                "parent": {
                    "type": "b",
                    "at": "2024-02-29T12:00:00.000005",
                    "parent": None,
                },
            },
        ),
        (Unset(), {"b": 2}),
    ],
    "attrs": [(Attrs(1, Colour.RED), {"a": 1, "_b": 1})],
    "struct": [(Struct(1, b"a"), {"a": 1, "b": "YQ=="})],
    "exception": [
        (ValueError("no"), {"type": "ValueError", "message": "no"}),
        (KeyboardInterrupt(), {"type": "KeyboardInterrupt", "message": ""}),
    ],
    "path": [
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (pathlib.PurePosixPath("/\udcff"), "/\ufffd"),
        (BytesPath(), "/a\ufffd"),
    ],
    "address": [
        (V4, "10.0.0.1"),
        (V6, "::1"),
        (ipaddress.ip_network("10.0.0.0/8"), "10.0.0.0/8"),
        (ipaddress.ip_interface("10.0.0.1/8"), "10.0.0.1/8"),
    ],
    "array": [(Array(1, float("inf"), NOON.date()), [1, None, "2024-02-29"])],
    "mapping": [
        (types.MappingProxyType({"a": {1}}), {"a": [1]}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (Counter("aab"), {"a": 2, "b": 1}),
    ],
    "iterable": [
        (deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        ({"b": 1, "a": 2}.keys(), ["b", "a"]),
    ],
    "text": [
        (Shown(), "shown by <tests.payload.specimens.Shown object>"),
        (Plain(), "<tests.payload.specimens.Plain>"),
        (Plain, "<class 'tests.payload.specimens.Plain'>"),
        (Fraction(1, 3), "1/3"),
        (1j, "1j"),
        (..., "Ellipsis"),
    ],
}

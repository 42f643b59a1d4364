"""The serialization scenario: six common types, and five more."""

import copy
import math
from datetime import UTC, datetime

import pytest

from service.payload import dump
from tests.payload.strictjson import strict

LOOP = {"type": "loop"}
LOOP["self"] = LOOP

SIX = {
    "none": (None, None),
    "null field": ({"type": "a", "data": None}, {"type": "a", "data": None}),
    "infinity": ({"value": math.inf}, {"value": None}),
    "unicode": (
        {"text": "héllo 世界 🚀 \x00"},
        {"text": "héllo 世界 🚀 \x00"},
    ),
    "nested": ({"a": {"b": {"c": [{"d": 1}]}}}, {"a": {"b": {"c": [{"d": 1}]}}}),
    "100 items": ([{"n": n} for n in range(100)], [{"n": n} for n in range(100)]),
}
MORE = {
    "nan": ([math.nan], [None]),
    "cycle": (LOOP, {"type": "loop", "self": "<cycle>"}),
    "bytes": ({"blob": b"\x00\x01"}, {"blob": "AAE="}),
    "datetime": (datetime(2024, 2, 29, tzinfo=UTC), "2024-02-29T00:00:00Z"),
    "object": ({"o": object()}, {"o": "<builtins.object>"}),
}


@pytest.mark.requirement("B28")
@pytest.mark.parametrize("kind", SIX | MORE)
def test_the_type_is_strict_json_and_not_changed(kind):
    value, expected = (SIX | MORE)[kind]
    before = copy.deepcopy(value)
    assert strict(dump(value)) == expected
    if kind not in ("nan", "cycle", "object"):
        assert value == before
    assert repr(value) == repr(before) or kind == "object"


@pytest.mark.requirement("B9")
@pytest.mark.parametrize(
    "value", [None, {}, {"data": 1}, {"type": None}, object(), math.inf, math.nan]
)
def test_malformed_messages_are_json_too(value):
    strict(dump(value))


@pytest.mark.requirement("B28")
def test_ten_thousand_keys():  # E28
    value = {f"key {number}": number for number in range(10_000)}
    assert strict(dump(value)) == value
    value["odd"] = {1}
    assert strict(dump(value))["odd"] == [1]

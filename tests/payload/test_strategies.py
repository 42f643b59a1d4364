"""Each named strategy, alone and as the part of something."""

import sys

import pytest

from service.payload import dump
from service.payload.strategies import STRATEGIES
from tests.payload.specimens import NOON, SPECIMENS, Array, ToDict
from tests.payload.strictjson import strict

CASES = [
    pytest.param(name, value, expected, id=f"{name}-{number}")
    for name, pairs in SPECIMENS.items()
    for number, (value, expected) in enumerate(pairs)
]


def test_every_strategy_has_specimens():
    names = [strategy.name for strategy in STRATEGIES]
    assert sorted(names) == sorted(SPECIMENS)
    assert len(set(names)) == len(names) >= 8


@pytest.mark.requirement("R18", "B48")
@pytest.mark.parametrize(("name", "value", "expected"), CASES)
def test_the_strategy_makes_json_of_its_kind(name, value, expected):
    kind = type(value[0] if name == "raw" else value)
    chosen = next(strategy for strategy in STRATEGIES if strategy.applies(kind))
    assert chosen.name == name
    assert strict(dump(value)) == expected
    assert strict(dump({"a": [value], "b": value})) == {"a": [expected], "b": expected}


def test_raw_text_at_the_top_is_passed_on_as_it_is():
    raw = SPECIMENS["raw"][0][0][0]
    assert dump(raw) is raw.text


def test_none_is_null():
    assert dump(None) == "null"


def test_numpy_is_neither_imported_nor_needed():
    assert "numpy" not in sys.modules
    assert dump(Array(NOON)) == '"2024-02-29T12:00:00.000005"'


def test_numpy_itself():
    numpy = pytest.importorskip("numpy")
    value = {
        "scalars": [numpy.int64(1), numpy.float32(0.5), numpy.bool_(True)],
        "array": numpy.array([[1.5, numpy.nan], [numpy.inf, 2]]),
        "when": numpy.datetime64("2024-02-29T12:00:00.000005999"),
        "never": numpy.datetime64("NaT", "s"),
        "for": numpy.timedelta64(5, "s"),
        "long": numpy.longdouble(1.5),
        numpy.int64(7): numpy.str_("text"),
    }
    assert strict(dump(value)) == {
        "scalars": [1, 0.5, True],
        "array": [[1.5, None], [None, 2]],
        "when": "2024-02-29T12:00:00.000005",
        "never": None,
        "for": 5,
        "long": "1.5",
        "7": "text",
    }


def test_times_of_arrays_are_asked_in_microseconds():
    class Times(Array):
        class dtype:
            kind = "M"

        def astype(self, unit):
            assert unit == "M8[us]"
            return Array(NOON)

    assert dump(Times(1)) == '"2024-02-29T12:00:00.000005"'


def test_a_strategy_that_raises_is_passed_over():
    class Broken(ToDict):
        def to_dict(self):
            raise RuntimeError

        def model_dump(self):
            return {"second": 1}

    assert dump(Broken(1)) == '{"second":1}'


def test_an_object_whose_answer_is_itself_is_passed_over():
    class Same:
        def to_dict(self):
            return self

        def __json__(self):
            return type(self)()

        def __str__(self):
            return "the text"

    assert dump([Same()]) == '["the text"]'

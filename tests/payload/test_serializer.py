"""The plain case: where ujson answers, and where its answer must not be used."""

import datetime
import itertools
import math
from collections import namedtuple
from decimal import Decimal

import pytest
import ujson
from hypothesis import given
from hypothesis import strategies as st

import service.payload.serializer as serializer
from service.payload import dump
from service.payload.budget import Budget
from service.payload.walk import Walk
from tests.payload.strictjson import parse, strict

Pair = namedtuple("Pair", "a b")


class Injected:
    def __json__(self):
        return "{bad"


def raw(value):
    return ujson.dumps(value, ensure_ascii=False, escape_forward_slashes=False)


def nest(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "theirs", "ours"),
    [
        ({1: "a", "1": "b"}, '{"1":"a","1":"b"}', '{"1#2":"a","1":"b"}'),
        ({(1, 2): 0}, '{"(1, 2)":0}', '{"[1,2]":0}'),
        ({math.nan: 0}, '{"nan":0}', '{"null":0}'),
        ({b"\xff": 0}, None, '{"/w==":0}'),
        (math.nan, "NaN", "null"),
        ([-math.inf], "[-Infinity]", "[null]"),
        (Decimal("0.1000000000000000000001"), "0.1", '"0.1000000000000000000001"'),
        (Pair(1, 2), "[1,2]", '{"a":1,"b":2}'),
        (Injected(), "{bad", f'"<{__name__}.Injected>"'),
        ("\ud800", '"\ud800"', '"\ufffd"'),
        (10**30, str(10**30), f'"{10**30}"'),
        ({1, 2}, None, "[1,2]"),
        (b"a", None, '"YQ=="'),
        (datetime.date(2024, 2, 29), None, '"2024-02-29"'),
        (10**5000, None, f'"{hex(10**5000)}"'),
        (nest(1), "[[]]", "[[]]"),
        (nest(100), "[" * 101 + "]" * 101, "[" * 100 + '"<too deep>"' + "]" * 100),
        (nest(2000), None, "[" * 100 + '"<too deep>"' + "]" * 100),
    ],
    ids=itertools.count(),
)
def test_where_ujson_alone_would_err(value, theirs, ours):
    if theirs is None:
        with pytest.raises((TypeError, ValueError, OverflowError)):
            raw(value)
    else:
        assert raw(value) == theirs
    assert dump(value) == ours
    strict(ours)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner)
    ),
    max_leaves=30,
)


def lists(value):
    match value:
        case dict():
            return {key: lists(item) for key, item in value.items()}
        case list() | tuple():
            return [lists(item) for item in value]
    return value


@given(plain)
def test_plain_values_come_back_as_they_were(value):
    assert parse(dump(value)) == lists(value)


@given(plain)
def test_the_strategies_leave_plain_values_as_they_are(value):
    walk = Walk(Budget(lambda: 0.0, size=10**6, seconds=1.0))
    copy = walk.value(value, 1)
    assert copy == lists(value)
    assert ujson.dumps(copy, ensure_ascii=False, escape_forward_slashes=False) == dump(
        value
    )


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_are_exact(value):
    assert float(dump(value)) == value


def test_plain_values_do_not_take_the_slow_way(monkeypatch):
    monkeypatch.setattr(serializer, "Walk", None)
    value = {"a": [1, 2.5, None, True, "é", (), {}, {"b": (1,)}], "c": -(2**63)}
    inner = '[1,2.5,null,true,"é",[],{},{"b":[1]}]'
    assert dump(value) == f'{{"a":{inner},"c":-9223372036854775808}}'

"""Random objects: strict JSON, no exception, and the object unchanged."""

import ipaddress
import os
import string
from collections import deque
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.payload import dump
from tests.payload.randomobjects import Broken, Objects, picture
from tests.payload.specimens import Attrs, Colour, Level, Mode, Point, Struct, ToDict
from tests.payload.strictjson import strict

COUNT = 10_000


@pytest.mark.requirement("R18")
def test_ten_thousand_random_objects():
    seed = int(os.environ.get("PAYLOAD_SEED", "20240229"))
    print(f"seed {seed} (PAYLOAD_SEED)")
    objects = Objects(seed)
    kinds, containers = set(), 0
    for number in range(COUNT):
        value = objects.make()
        before = picture(value)
        text = dump(value)
        answer = strict(text)
        assert picture(value) == before, number
        assert '"error":{"reason"' not in text
        assert dump(value) == text, number
        kinds.add(type(value))
        containers += isinstance(answer, dict | list)
    print(f"{COUNT} objects of {len(kinds)} kinds, {containers} of them containers")
    assert len(kinds) > 50
    assert containers > COUNT // 3


text = st.text(st.characters(exclude_categories=()))
keys = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | text
    | st.binary()
    | st.dates()
    | st.uuids()
    | st.sampled_from([*Colour, *Level, *Mode])
    | st.tuples(text, st.integers())
    | st.frozensets(st.integers() | text)
)
leaves = (
    keys
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.times()
    | st.timedeltas()
    | st.decimals()
    | st.fractions()
    | st.complex_numbers()
    | st.ip_addresses()
    | st.binary().map(bytearray)
    | st.binary().map(memoryview)
    | st.builds(ipaddress.ip_interface, st.ip_addresses())
    | st.builds(ValueError, text)
    | st.builds(range, st.integers(0, 100))
    | st.builds(Broken)
    | st.sampled_from([object(), ..., Broken, len, string])
)
anything = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.lists(inner).map(deque)
        | st.lists(inner).map(iter)
        | st.dictionaries(keys, inner)
        | st.sets(keys)
        | st.builds(Point, st.integers(), inner)
        | st.builds(Attrs, st.integers(), inner)
        | st.builds(Struct, st.integers(), inner)
        | st.builds(ToDict, inner)
        | st.builds(SimpleNamespace, a=inner)
    ),
    max_leaves=20,
)


@given(anything)
def test_any_object_is_strict_json(value):
    strict(dump(value))


@given(st.dictionaries(keys, st.integers(0, 9)))
def test_no_member_is_lost_whatever_the_keys(value):
    assert list(strict(dump(value)).values()) == list(value.values())


@given(text)
def test_only_lone_surrogates_are_replaced(value):
    answer = strict(dump(value))
    assert answer == value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

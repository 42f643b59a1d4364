"""Values that JSON cannot hold: the policy for each."""

import itertools
import math
import os

import pytest

from service.payload import dump
from tests.payload.specimens import Colour, Event, Level, Mode, ToDict
from tests.payload.strictjson import strict


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(value):
    assert dump(value) == "null"
    assert dump({"a": [value, 1.5]}) == '{"a":[null,1.5]}'
    assert dump({"a": {value}}) == '{"a":[null]}'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2**53 + 1, "9007199254740993"),
        (2**64 - 1, "18446744073709551615"),
        (2**64, '"18446744073709551616"'),
        (-(2**63), "-9223372036854775808"),
        (-(2**63) - 1, '"-9223372036854775809"'),
        (2**2047, f'"{2**2047}"'),
        (2**2048, f'"{hex(2**2048)}"'),
        (-(2**100_000), f'"{hex(-(2**100_000))}"'),
        (True, "true"),
    ],
    ids=itertools.count(),
)
def test_integers_are_exact_numbers_up_to_64_bits_and_text_beyond(value, text):
    assert dump(value) == text
    assert dump([{"a": value}]) == f'[{{"a":{text}}}]'


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("\ud800", "\ufffd"),
        ("a\udc00b\ud800c", "a\ufffdb\ufffdc"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud83d\ud83d\ude00\U0001f600", "\ufffd\U0001f600\U0001f600"),
    ],
)
def test_lone_surrogates_become_the_replacement_character(value, expected):
    assert strict(dump(value)) == expected
    assert strict(dump({"a": value, value: [1]})) == {"a": expected, expected: [1]}


def test_text_is_kept_to_the_letter():
    text = "".join(map(chr, [*range(0x300), 0x2028, 0x2029, 0xFFFF, 0x10FFFF]))
    assert strict(dump([text, {text: text}])) == [text, {text: text}]
    assert "\n" not in dump("\n")


@pytest.mark.requirement("B49")
@pytest.mark.parametrize(
    ("key", "name"),
    [
        (1, "1"),
        (-0.5, "-0.5"),
        (1e22, "1e+22"),
        (True, "true"),
        (False, "false"),
        (None, "null"),
        (math.nan, "null"),
        (2**70, "1180591620717411303424"),
        (b"a", "YQ=="),
        ((1, "é"), '[1,"é"]'),
        (frozenset({2, 1}), "[1,2]"),
        (Colour.RED, "1"),
        (Colour.WHEN, "2024-02-29"),
        (Mode.LIVE, "live"),
        (Level.HIGH, "3"),
        ("\ud800", "\ufffd"),
        (ToDict, "<class 'tests.payload.specimens.ToDict'>"),
    ],
)
def test_a_key_is_the_json_text_of_its_value(key, name):
    assert strict(dump({key: 1})) == {name: 1}


def test_keys_that_become_equal_are_numbered_and_strings_keep_theirs():
    value = {1: "a", None: "b", "1": "c", (): "d", "null": "e", math.nan: "f"}
    value |= {"1#2": "g", chr(0xD800): "h", chr(0xD801): "i", math.inf: "j"}
    assert strict(dump(value)) == {
        "1#3": "a",
        "null#2": "b",
        "1": "c",
        "[]": "d",
        "null": "e",
        "null#3": "f",
        "1#2": "g",
        "\ufffd": "h",
        "\ufffd#2": "i",
        "null#4": "j",
    }


def test_many_keys_that_become_equal_take_no_quadratic_time():
    value = {float("nan"): number for number in range(5_000)}
    assert len(strict(dump(value))) == 5_000


def nested(depth, make):
    value = make(None)
    for _ in range(depth - 1):
        value = make(value)
    return value


@pytest.mark.parametrize(
    "make",
    [lambda value: [value], lambda value: {"a": value}, lambda value: (value,)],
)
def test_a_hundred_levels_are_whole_and_the_next_is_cut(make):
    assert "<" not in dump(nested(100, make))
    text = dump(nested(101, make))
    strict(text)
    assert text.count("<too deep>") == 1
    assert text.count("[") + text.count("{") == 100
    assert strict(dump(nested(20_000, make))) == strict(text)


def test_levels_are_those_of_the_json_and_not_of_the_objects():
    assert "<" not in dump(nested(100, ToDict))
    assert "<too deep>" in dump(nested(101, ToDict))


@pytest.mark.requirement("B28")
def test_a_cycle_is_cut_where_it_closes():
    loop = [1]
    loop.append(loop)
    assert dump(loop) == '[1,"<cycle>"]'
    members = {"a": {"b": []}}
    members["a"]["b"].append(members)
    assert dump(members) == '{"a":{"b":["<cycle>"]}}'
    event = Event("a", None)
    event.parent = Event("b", None, event)
    assert strict(dump(event))["parent"]["parent"] == "<cycle>"
    own = ToDict(None)
    own.held = own
    assert dump(own) == '{"held":"<cycle>"}'


def test_what_occurs_twice_is_no_cycle():
    shared = [1]
    assert dump([shared, shared, {"a": shared}]) == '[[1],[1],{"a":[1]}]'
    assert dump([{shared[0]}, shared, ToDict(shared)]) == '[[1],[1],{"held":[1]}]'


def test_sets_come_in_the_same_order_in_every_process():
    names = {f"name {number}" for number in range(100)}
    mixed = {1, "a", None, 2.5, (1, 2), frozenset({"x"}), b"z", Colour.RED}
    assert strict(dump(names)) == sorted(names)
    again = set(sorted(mixed, key=repr))
    assert dump(mixed) == dump(again)


def test_iterators_are_read_up_to_a_bound():
    assert strict(dump(number for number in range(10_000))) == list(range(10_000))
    more = strict(dump(number for number in range(10_001)))
    assert more == [*range(10_000), "<truncated>"]
    assert strict(dump(range(10**30))) == more
    assert strict(dump({"a": iter(int, 1)}))["a"][10_000:] == ["<truncated>"]


def test_an_iterator_that_fails_ends_with_a_marker():
    def failing():
        yield 1
        raise OSError

    assert dump(failing()) == '[1,"<failed>"]'


def test_an_iterator_that_fails_at_once_is_its_text():
    def failing():
        raise OSError
        yield

    failing.__qualname__ = "failing"
    assert dump(failing()) == '"<generator object failing>"'


@pytest.mark.requirement("B50")
def test_text_of_an_unknown_object_is_cut():
    class Long:
        def __str__(self):
            return "x" * 5000

    assert strict(dump(Long())) == "x" * 999 + "…"


def test_files_are_not_read_nor_futures_iterated(tmp_path):
    path = tmp_path / "file"
    path.write_text("secret")
    with path.open() as file:
        assert "secret" not in dump([file])
        assert file.read() == "secret"
    assert dump(os.scandir) == '"<built-in function scandir>"'

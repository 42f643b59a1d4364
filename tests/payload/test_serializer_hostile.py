"""Objects that lie, raise, loop or interfere: each becomes strict JSON."""

import asyncio
import contextlib
import sys
from collections import UserDict, deque
from datetime import datetime, tzinfo
from unittest.mock import MagicMock, Mock

import pytest

from service.payload import dump
from service.payload.serializer import Serializer
from tests.payload.randomobjects import Broken
from tests.payload.strictjson import strict

GONE = "<unserializable>"


def make(**methods):
    """Return an object of a class with these methods."""
    return type("Made", (), methods)()


def fail(*_):
    raise RuntimeError("hostile")


def recurse(self):
    return recurse(self)


class Meta(type):
    __hash__ = None

    def __getattribute__(cls, name):
        raise RuntimeError(name)


class BadClass(metaclass=Meta):
    pass


class Anything:
    """Has every attribute that it is asked for, and each is of no use."""

    def __getattr__(self, name):
        return self

    def __call__(self, *args):
        return self


class Masked:
    @property
    def __class__(self):
        raise RuntimeError("class")


class BadText(str):
    __slots__ = ()
    __str__ = __repr__ = __len__ = __hash__ = __eq__ = encode = isascii = fail


class BadInt(int):
    __int__ = __index__ = __str__ = __repr__ = __le__ = __ge__ = bit_length = fail


class BadDict(dict):
    items = keys = values = __iter__ = __len__ = __getitem__ = __repr__ = fail


class BadList(list):
    __iter__ = __len__ = __getitem__ = __repr__ = fail


class BadZone(tzinfo):
    utcoffset = tzname = dst = fail


class Endless(UserDict):
    def items(self):
        while True:
            yield "a", 1


class Pong:
    def to_dict(self):
        return Ping()


class Ping:
    def to_dict(self):
        return Pong()


def released():
    view = memoryview(b"abc")
    view.release()
    return view


HOSTILE = [  # None stands for whatever it may be
    (Broken(), GONE),
    (make(__repr__=fail), GONE),
    (make(__str__=recurse), GONE),
    (make(__str__=lambda self: 1), GONE),
    (BadClass(), GONE),
    (BadDict(a=1), GONE),
    (BadList([1]), GONE),
    (Ping(), GONE),
    (BadText("text"), "text"),
    (BadInt(5), 5),
    (BadInt(2**64), str(2**64)),
    (released(), "<released memory>"),
    (datetime(2024, 1, 1, tzinfo=BadZone()), GONE),
    (make(to_dict=recurse, __str__=lambda self: "text"), "text"),
    (make(to_dict=lambda self, needed: 1, __str__=lambda self: "text"), "text"),
    (make(to_dict=7, __str__=lambda self: "text"), "text"),
    (make(__json__=lambda self: "{bad", __str__=lambda self: "text"), "text"),
    (make(__json__=lambda self: "NaN", __str__=lambda self: "text"), "text"),
    (make(__json__=lambda self: "[" * 101, __str__=lambda self: "text"), "text"),
    (make(__json__=lambda self: b'"\xff"', __str__=lambda self: "text"), "text"),
    (make(__json__=lambda self: "1" * 5000, __str__=lambda self: "text"), "text"),
    (make(__json__=lambda self: "1e999"), None),
    (make(__json__=lambda self: '"\\ud800"'), "\ufffd"),
    (make(__len__=lambda self: -1, __iter__=lambda self: iter("ab")), None),
    (make(__len__=lambda self: 1, __iter__=lambda self: iter("ab")), ["a"]),
    (make(__iter__=lambda self: 5, __str__=lambda self: "text"), "text"),
    (make(__iter__=lambda self: iter([self])), ["<cycle>"]),
    (make(to_dict=lambda self: {"a": [self]}), {"a": ["<cycle>"]}),
    ({1: make(__eq__=fail, __hash__=fail, __str__=lambda self: "x")}, {"1": "x"}),
    (ExceptionGroup("several", [ValueError()]), None),
    (type("Error", (Exception,), {"__str__": fail, "__repr__": fail})(), GONE),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_objects_are_json_all_the_same(number):
    value, expected = HOSTILE[number]
    for wrapped in (value, [value], {"a": (value,)}):
        answer = strict(dump(wrapped))
    if expected is not None:
        assert answer == {"a": [expected]}


SEEMING = [Anything(), Masked(), Mock(), MagicMock(), Mock, Endless(a=1), len]


@pytest.mark.parametrize("number", range(len(SEEMING)))
def test_objects_that_seem_to_have_everything(number):
    strict(dump([SEEMING[number], {"a": SEEMING[number]}]))


@pytest.mark.parametrize(
    "method", ["to_dict", "model_dump", "__json__", "__str__", "__iter__"]
)
@pytest.mark.parametrize("error", [MemoryError, RecursionError, StopIteration, OSError])
def test_no_error_of_an_object_comes_out(method, error):
    def fail(self):
        raise error

    strict(dump([make(**{method: fail})]))


@pytest.mark.parametrize(
    "method", ["to_dict", "model_dump", "__json__", "__str__", "__iter__"]
)
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
def test_what_is_to_end_the_program_or_the_task_does(method, error):
    def fail(self):
        raise error

    with pytest.raises(error):
        dump({"a": [make(**{method: fail})]})


async def test_a_method_that_is_asynchronous_is_passed_over():
    async def to_dict(self):
        raise AssertionError("never awaited")

    value = make(to_dict=to_dict, __str__=lambda self: "text")
    assert dump(value) == '"text"'


async def test_futures_are_not_iterated():
    future = asyncio.get_running_loop().create_future()
    strict(dump([future]))
    future.set_result(1)
    assert await future == 1


def test_an_object_may_change_what_it_is_in():
    def grow(self):
        members[len(members)] = self
        items.append(self)
        return {"grown": len(items)}

    items = []
    members = {"items": items, "date": datetime(2024, 1, 1)}
    items.extend(make(to_dict=grow) for _ in range(3))
    assert len(strict(dump(members))["items"]) == 3


def test_an_object_may_dump_others():
    inner = make(__json__=lambda self: dump({"when": datetime(2024, 1, 1)}))
    assert dump([inner]) == '[{"when":"2024-01-01T00:00:00"}]'


def test_items_that_are_no_pairs():
    class Wrong(UserDict):
        def items(self):
            return [1, 2]

    assert dump(Wrong(a=1, b=2)) == '["a","b"]'


def test_a_mapping_that_fails_half_way():
    class Half(UserDict):
        def items(self):
            yield "a", 1
            raise OSError

    assert dump(Half(a=1, b=2)) == '{"a":1,"<failed>":true}'


def test_a_mapping_that_does_not_say_how_many():
    class Odd(UserDict):
        __len__ = None

        def items(self):
            return deque((number, 0) for number in range(10_001))

    assert strict(dump(Odd()))["a" if 0 else "0"] == 0


def test_a_chain_of_objects_without_end():
    def links():
        class Link:
            def to_dict(self):
                return {"next": Link()}

        return Link()

    text = dump(links())
    strict(text)
    assert text.count("next") == 100
    assert "<too deep>" in text


@pytest.mark.parametrize("value", [[1], [{1}], {"id": 1, "a": [[[{1: {2}}]]]}])
def test_near_the_end_of_the_stack(value):
    """With room for 4 calls on the stack there is an answer, of any kind."""

    def dive(frames, call):
        return dive(frames - 1, call) if frames else call()

    def four():
        return dive(3, lambda: None)

    most = 0
    with contextlib.suppress(RecursionError):
        for most in range(sys.getrecursionlimit()):
            dive(most, four)
    answers = [dive(most - 1 - spare, lambda: dump(value)) for spare in range(100)]
    for text in set(answers):
        strict(text)
    assert answers[-1] == dump(value)


def test_when_not_even_the_error_object_can_be_made():
    def clock():
        if seen:
            hostile.clear()
            raise RuntimeError
        seen.append(1)
        return 0.0

    class Changing(dict):
        pass

    seen, hostile = [], {"a": b"x"}
    assert strict(Serializer(clock).dump(hostile)) == {"error": {"reason": "failure"}}

"""Budgets of size, depth and time: the error object of a value that exceeds one."""

import math
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import pytest

from service.payload import dump
from service.payload.serializer import Serializer
from tests.clock import VirtualClock
from tests.payload.specimens import Array, Event, ToDict
from tests.payload.strictjson import strict

KIB = 1024
MIB = 1024 * KIB


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def slow(clock):
    """Make objects whose method takes so many seconds."""

    class Slow:
        def __init__(self, seconds, answer=None):
            self.seconds, self.answer = seconds, answer

        def to_dict(self):
            clock.advance(self.seconds)
            return self.answer

    return Slow


def test_the_bound_is_exact_in_bytes(clock):
    dump = Serializer(clock.now, size=100).dump
    assert dump("x" * 98) == '"' + "x" * 98 + '"'
    assert strict(dump("x" * 99)) == {"error": {"reason": "size", "limit": 100}}
    assert dump("é" * 49) == '"' + "é" * 49 + '"'
    assert strict(dump("é" * 50))["error"]["reason"] == "size"
    assert dump({b"\xff" * 66: 1})[:2] == '{"'
    assert strict(dump({b"\xff" * 72: 1}))["error"]["reason"] == "size"


@pytest.mark.requirement("B51")
def test_a_payload_of_a_mebibyte_is_the_largest():
    assert len(dump("x" * (MIB - 2))) == MIB
    large = {"type": "state", "run_id": "r1", "text": "x" * MIB}
    assert strict(dump(large)) == {
        "type": "state",
        "run_id": "r1",
        "error": {"reason": "size", "limit": MIB},
    }


class Kind(StrEnum):
    STATE = "state"


def test_the_error_object_keeps_type_and_ids(clock):
    ident = UUID(int=1)
    value = {
        "text": "x" * 1000,
        "type": Kind.STATE,
        "event": "\ud800",
        "id": 7,
        "run_id": ident,
        "thread_id": "t",
        "seq": 2**64 - 1,
        "timestamp": 1.5,
        "\ud800_id": 1,
        "error": "replaced",
        "user": "dropped",
        "a_id": "x" * 257,
        "b_id": 2**64,
        "c_id": math.nan,
        "d_id": [1],
        "e_id": True,
        "x" * 254 + "_id": 1,
        1: 2,
    }
    assert strict(Serializer(clock.now, size=500).dump(value)) == {
        "type": "state",
        "event": "\ufffd",
        "id": 7,
        "run_id": str(ident),
        "thread_id": "t",
        "seq": 2**64 - 1,
        "timestamp": 1.5,
        "\ufffd_id": 1,
        "error": {"reason": "size", "limit": 500},
    }


def test_the_error_object_is_bounded_itself():
    value = {f"{number}_id": "x" * 256 for number in range(10_000)}
    value["text"] = "x" * MIB
    assert len(strict(dump(value))) == 17
    assert len(dump(value)) < 10 * KIB


@pytest.mark.parametrize(
    "value",
    [
        Event("state", "x" * MIB),
        ToDict("x" * MIB),
        ["x" * MIB],
        b"x" * MIB,
        memoryview(b"x" * MIB),
        {"x" * MIB},
        set(range(MIB)),
        Array(*range(MIB + 1)),
        list(range(MIB)),
        dict.fromkeys(range(MIB)),
        {"a": -(1 << 10 * MIB)},
        ["a" * KIB] * KIB,
        [datetime.min, *["a" * KIB] * KIB],
    ],
    ids=lambda value: type(value).__name__,
)
def test_large_values_of_every_kind_are_replaced(clock, value):
    answer = strict(Serializer(clock.now).dump(value))
    assert answer["error"] == {"reason": "size", "limit": MIB}
    assert answer.get("type") == ("state" if isinstance(value, Event) else None)


def test_a_few_objects_that_would_be_written_without_end(clock):
    dump = Serializer(clock.now, size=MIB // 4).dump
    value = ["x"]
    for _ in range(90):
        value = [value] * 10
    assert strict(dump(value)) == {"error": {"reason": "size", "limit": MIB // 4}}
    assert strict(dump({"id": 1, "a": value, "b": b""}))["id"] == 1


@pytest.mark.requirement("R19", "B46")
def test_one_slow_object_is_replaced(clock, slow):
    dump = Serializer(clock.now).dump
    value = {"type": "token", "run_id": "r1", "a": slow(1.0, {"b": 1})}
    assert strict(dump(value)) == {
        "type": "token",
        "run_id": "r1",
        "error": {"reason": "time", "limit": 1.0},
    }
    value["a"] = slow(0.999, {"b": 1})
    assert strict(dump(value))["a"] == {"b": 1}


def test_ids_that_a_slow_object_gives_are_kept(clock, slow):
    answer = {"type": "token", "thread_id": 5, "text": "x"}
    text = Serializer(clock.now).dump(slow(2.0, answer))
    assert strict(text) == {
        "type": "token",
        "thread_id": 5,
        "error": {"reason": "time", "limit": 1.0},
    }


def test_slow_objects_add_up_and_the_rest_is_not_asked(clock, slow):
    items = [slow(0.3, {}) for _ in range(100)]
    before = clock.now()
    answer = strict(Serializer(clock.now).dump({"id": 1, "items": items}))
    assert answer == {"id": 1, "error": {"reason": "time", "limit": 1.0}}
    assert clock.now() - before == pytest.approx(1.2)


def test_slow_iterators_are_left(clock):
    def drip():
        while True:
            clock.advance(0.01)
            yield 1

    answer = strict(Serializer(clock.now, seconds=0.5).dump({"id": 1, "a": drip()}))
    assert answer == {"id": 1, "error": {"reason": "time", "limit": 0.5}}
    assert clock.now() == pytest.approx(1000.5, abs=0.011)


def test_objects_that_are_slow_and_then_fail(clock):
    class Failing:
        def to_dict(self):
            clock.advance(2.0)
            raise OSError

        def __str__(self):
            raise AssertionError("not asked any more")

    answer = strict(Serializer(clock.now).dump({"seq": 1, "a": Failing()}))
    assert answer == {"seq": 1, "error": {"reason": "time", "limit": 1.0}}


def test_the_clock_is_looked_at_while_walking_as_well():
    times = iter(range(10**6))

    def clock():
        return next(times) / 10

    value = {"id": 1, "a": [b"", *([1] * 100 for _ in range(1000))]}
    assert strict(Serializer(clock).dump(value))["error"]["reason"] == "time"
    assert next(times) < 20


def test_many_equal_parts_are_given_up_in_time_too():
    part = [b""]
    for _ in range(14):
        part = [part, part]
    answer = strict(Serializer(iter(range(10**6)).__next__).dump({"a": part}))
    assert answer == {"error": {"reason": "time", "limit": 1.0}}

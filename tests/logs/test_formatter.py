"""A line of the log: whole, safe, and never an exception."""

from __future__ import annotations

import enum
import json
import math
from typing import Any

import pytest

from service.logs.formatter import LineFormatter
from service.settings import LogSettings, Secret

KEY = b"k" * 32


def line(console: bool = False, hash_users: bool = False, **event: Any) -> str:
    lines = LineFormatter(LogSettings(hash_users=hash_users), KEY, console=console)
    return lines(None, "info", event)


def fields(**event: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(line(**event))
    assert found.pop("time").endswith("Z")
    assert found.pop("level") == "info"
    return found


class State(enum.Enum):
    CONNECTED = enum.auto()


class Angry(str):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Payload:
    def __repr__(self) -> str:
        return "what somebody wrote"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (1 << 100, "<int>"),
        (0.5, 0.5),
        (math.inf, "inf"),
        (math.nan, "nan"),
        ("é\n\x1b[31m", "é\n\x1b[31m"),
        ("\ud800", "\ud800"),
        ("x" * 3000, "x" * 2000 + "…"),
        (b"\x00\xff", "<bytes>"),
        (State.CONNECTED, "CONNECTED"),  # L8
        (Secret("s3cr3t"), "[secret]"),
        (Payload(), "<Payload>"),
        (ValueError("what somebody wrote"), "<ValueError>"),
        ([1, Payload(), (State.CONNECTED,)], [1, "<Payload>", ["CONNECTED"]]),
        ({1: Payload(), "b": {"c": {}}}, {"1": "<Payload>", "b": {"c": {}}}),
        ({"a": {"b": {"c": {"d": 1}}}}, {"a": {"b": {"c": "<dict>"}}}),
        (list(range(100)), list(range(50))),
    ],
)  # fmt: skip
def test_what_a_field_shows(value: object, shown: object) -> None:
    assert fields(event="e", given=value) == {"event": "e", "given": shown}
    text = line(console=True, event="e", given=value)
    assert text.endswith(f" e given={text.partition('given=')[2]}")
    assert text.isprintable(), text


def test_a_number_too_long_to_write() -> None:
    assert fields(event="e", given=10**5000)["given"] == "<int>"


def test_a_list_in_itself_ends() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert fields(event="e", given=endless)["given"] == [[["<list>"]]]


@pytest.mark.requirement("L8")
def test_a_field_that_fails_costs_the_line_and_nothing_else() -> None:
    said = json.loads(line(event="e", given=Angry("x")))
    assert said.pop("time")
    assert said == {
        "level": "error",
        "event": "a line of the log failed",
        "error": "RuntimeError",
    }


def test_a_stack_is_below_its_line_on_the_console() -> None:
    text = line(console=True, event="failed", stack='  File "a.py"\n    x\x1b()\n')
    head, *below = text.split("\n")
    assert head.endswith("failed")
    assert below == ['      File "a.py"', "        x\\x1b()"]


def test_users_are_hashed_with_a_key_if_set() -> None:
    named = fields(event="e", user="ann", channel="dm#ann", address="10.0.0.1", n="ann")
    assert named["user"] == "ann"
    hashed = fields(
        hash_users=True, event="e", user="ann", channel="dm#ann", address="::1", n="ann"
    )
    assert "ann" not in (hashed["user"], hashed["channel"], hashed["address"])
    assert hashed["n"] == "ann"
    assert len({hashed["user"], hashed["channel"], hashed["address"]}) == 3
    assert all(len(hashed[name]) == 16 for name in ("user", "channel", "address"))
    again = fields(hash_users=True, event="e", user="ann")
    assert again["user"] == hashed["user"]
    assert fields(hash_users=True, event="e", user="")["user"] == ""
    other = LineFormatter(LogSettings(hash_users=True), b"other", console=False)
    assert json.loads(other(None, "info", {"user": "ann"}))["user"] != hashed["user"]

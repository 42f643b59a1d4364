"""A parser of RFC 8259 and nothing more, which shares no code with the service.

It refuses what the RFC only warns of, too: a name twice in an object, a lone
surrogate, written out or escaped.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from _speedups import check

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_STRING = re.compile(
    r'"((?:[^"\\\x00-\x1f\ud800-\udfff]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*)"'
)
_ESCAPE = re.compile(r'\\(u[0-9a-fA-F]{4}|["\\/bfnrt])')
_NAMED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"null": None, "true": True, "false": False}


def parse(text: str) -> Any:
    """Return the value of *text*, in which nothing is left over."""
    value, at = _value(text, 0)
    if at != len(text):
        raise ValueError(f"left over at {at}")
    return value


def strict(text: str) -> Any:
    """Return the value of *text*, on which three parsers agree."""
    assert type(text) is str
    value = parse(text)
    assert check(text) == text
    assert json.loads(text, parse_constant=_refuse) == value
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _value(text: str, at: int) -> tuple[Any, int]:
    first = text[at : at + 1]
    if first == "{":
        return _object(text, at + 1)
    if first == "[":
        return _array(text, at + 1)
    if first == '"':
        return _string(text, at)
    for word, value in _WORDS.items():
        if text.startswith(word, at):
            return value, at + len(word)
    match = _NUMBER.match(text, at)
    if match is None:
        raise ValueError(f"no value at {at}")
    return (float if match[2] or match[3] else int)(match[0]), match.end()


def _string(text: str, at: int) -> tuple[str, int]:
    match = _STRING.match(text, at)
    if match is None:
        raise ValueError(f"no string at {at}")
    value = match[1]
    if "\\" in value:
        value = _ESCAPE.sub(_unescape, value)
        value = value.encode("utf-16", "surrogatepass").decode("utf-16")
    return value, match.end()


def _unescape(match: re.Match[str]) -> str:
    escape = match[1]
    if len(escape) > 1:
        return chr(int(escape[1:], 16))
    return _NAMED.get(escape, escape)


def _array(text: str, at: int) -> tuple[list[Any], int]:
    values: list[Any] = []
    if text[at : at + 1] == "]":
        return values, at + 1
    while True:
        value, at = _value(text, at)
        values.append(value)
        mark, at = text[at : at + 1], at + 1
        if mark == "]":
            return values, at
        if mark != ",":
            raise ValueError(f"no comma before {at}")


def _object(text: str, at: int) -> tuple[dict[str, Any], int]:
    members: dict[str, Any] = {}
    if text[at : at + 1] == "}":
        return members, at + 1
    while True:
        name, at = _string(text, at)
        if text[at : at + 1] != ":":
            raise ValueError(f"no colon at {at}")
        if name in members:
            raise ValueError(f"name repeated before {at}")
        members[name], at = _value(text, at + 1)
        mark, at = text[at : at + 1], at + 1
        if mark == "}":
            return members, at
        if mark != ",":
            raise ValueError(f"no comma before {at}")

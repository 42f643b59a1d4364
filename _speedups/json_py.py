"""JSON codec of frames, interpreted: the twin of `_speedups.json_c`.

A payload is never parsed and dumped again: it is validated in place and cut out as
text, which is later joined into the replies and pushes that carry it. Valid is JSON by
RFC 8259, read strictly; one document nests at most `DEPTH` deep.

The rules of both twins, beside the RFC:

* Text is `str`, or `bytes` in strict UTF-8; a lone surrogate in a `str`, a byte
  order mark, ``NaN`` and ``Infinity`` are malformed.
* Keys are compared as they are written. One with an escape is unknown: its value
  is validated and dropped. One without may not be repeated.
* *Raw* values come back as their text without surrounding whitespace and without
  newlines, which are only whitespace in JSON but end a message on the wire. Lone
  surrogate escapes are legal there.
* A number has at most `NUMBER` characters: Python reads no longer integer, and one
  publication must not end every subscriber that is written in it.
* Other values come back as Python objects. There an integer has at most
  `INTEGER` characters with its sign, a number is finite, and a lone surrogate
  escape is malformed: `str` could hold it, but nothing could encode it.

The work is done by the scanner of the standard library, which is compiled: a loop
over characters, interpreted, takes 1 ms for 16 KB.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from json import JSONDecoder
from json.encoder import JSONEncoder, encode_basestring, encode_basestring_ascii
from typing import Any, Final, NoReturn, TypeAlias

__all__ = [
    "COMMAND",
    "COMMANDS",
    "DEPTH",
    "INTEGER",
    "NUMBER",
    "check",
    "encode_publication",
    "encode_publication_push",
    "encode_push",
    "parse",
    "quote",
    "scan_array",
    "scan_commands",
    "scan_object",
]

DEPTH: Final = 100  # containers inside each other, the outermost counted as 1
INTEGER: Final = 20  # characters; 2**64 - 1 has 20 and so has -2**63
NUMBER: Final = 4300  # characters; the default of sys.set_int_max_str_digits

COMMANDS: Final = 4096
"""Most commands in a frame, unless it has `COMMAND` bytes for each of them. The
shortest has two bytes, a pong, and costs as much as any: without the bound a frame of
64 KiB takes 20 ms to read."""

COMMAND: Final = 16  # characters; 64 KiB have 4096 commands of them

_MAX_ID: Final = 2**32 - 1
_DATA: Final = frozenset(("data",))
_INFINITY: Final = float("inf")

_Scanner: TypeAlias = Callable[[str, int], tuple[Any, int]]
_Matcher: TypeAlias = Callable[[str, int], re.Match[str] | None]


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _number(digits: str) -> str:
    if len(digits) > NUMBER:
        raise ValueError(f"number of more than {NUMBER} characters")
    return digits


def _integer(digits: str) -> int:
    if len(digits) > INTEGER:
        raise ValueError(
            f"integer of {len(digits)} characters, expected no more than {INTEGER}"
        )
    return int(digits)


def _real(digits: str) -> float:
    value = float(_number(digits))
    if value in (_INFINITY, -_INFINITY):
        raise ValueError("number out of range")
    return value


def _scanner(decoder: Any) -> _Scanner:
    scan_once: _Scanner = decoder.scan_once  # typeshed leaves this attribute out
    return scan_once


_validating: Final = _scanner(
    JSONDecoder(parse_int=_number, parse_float=_number, parse_constant=_constant)
)
_parsing: Final = _scanner(
    JSONDecoder(parse_int=_integer, parse_float=_real, parse_constant=_constant)
)
_dump: Final = JSONEncoder(ensure_ascii=False).encode

_space: Final = re.compile(r"[ \t\n\r]*+").match
_blank: Final = re.compile(r"[ \t\r]*+").match
_line_end: Final = re.compile(r"[ \t\r]*+(\n|\Z)").match
_key: Final = re.compile(
    r'[ \t\n\r]*+"('
    r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+'
    r')"[ \t\n\r]*+:[ \t\n\r]*+'
).match
_after_member: Final = re.compile(r"[ \t\n\r]*+([,}])").match
_after_element: Final = re.compile(r"[ \t\n\r]*+([,\]])[ \t\n\r]*+").match
_not_bracket: Final = re.compile(
    # A string without an end goes to the end of the text: to look for its end once
    # more at each escaped quote would take quadratic time.
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[^\[\]{}"]++',
    re.DOTALL,
).sub
_SQUARE: Final = str.maketrans("{}", "[]")


def scan_commands(frame: str | bytes) -> list[tuple[int, str, dict[str, Any]]]:
    """Split a frame of newline-joined commands into their fields.

    Each line is one object; spaces, tabs and carriage returns may surround it. One
    newline may end the frame.

    Args:
        frame: What one WebSocket message carried.

    Returns:
        The id (0 if absent), the method ("" if absent) and the parameters of each
        command, in order. The parameter ``data`` is raw text.

    Raises:
        ValueError: If a line is blank or not a JSON object, there are more than
            `COMMANDS`, a command has more than one method, repeated keys, parameters
            that are not an object, or an id that is not an integer of 32 bits; or the
            text is malformed.
    """
    text = _text(frame)
    commands = []
    most = max(COMMANDS, len(text) // COMMAND)
    at = 0
    while True:
        command, at = _command(text, _end(_blank, text, at))
        commands.append(command)
        if len(commands) > most:
            raise ValueError(f"more than {most} commands")
        at = _end(_line_end, text, at)
        if at == len(text):
            return commands


def scan_object(text: str | bytes, raw: frozenset[str]) -> dict[str, Any]:
    """Split one JSON object into its members.

    Args:
        text: The object, and whitespace around it.
        raw: The keys whose values come back as raw text.

    Raises:
        ValueError: If *text* is not one object, repeats a key, or is malformed.
    """
    text = _text(text)
    fields, at = _fields(text, _end(_space, text, 0), raw)
    _finish(text, at)
    return fields


def scan_array(text: str | bytes) -> list[str]:
    """Split one JSON array into its elements, as raw text.

    Raises:
        ValueError: If *text* is not one array, or is malformed.
    """
    text = _text(text)
    at = _end(_space, text, 0)
    if text[at : at + 1] != "[":
        raise ValueError(f"expected an array at character {at}")
    elements: list[str] = []
    at = _end(_space, text, at + 1)
    if text[at : at + 1] == "]":
        _finish(text, at + 1)
        return elements
    while True:
        element, at = _raw(text, at)
        elements.append(element)
        mark = _after_element(text, at)
        if mark is None:
            raise ValueError(f"expected a comma or the end at character {at}")
        if mark[1] == "]":
            _finish(text, mark.end(1))
            return elements
        at = mark.end()


def check(text: str | bytes) -> str:
    """Return one JSON value of any kind as raw text.

    Raises:
        ValueError: If *text* is not exactly one value, or is malformed.
    """
    text = _text(text)
    value, at = _raw(text, _end(_space, text, 0))
    _finish(text, at)
    return value


def quote(text: str) -> str:
    """Return *text* as a JSON string.

    Text with a lone surrogate comes out in ASCII, all else as it is.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected str, got {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return encode_basestring_ascii(text)
    return encode_basestring(text)


def parse(text: str) -> Any:
    """Return the Python object of a valid text.

    The compiled twin calls it for values that it does not convert itself.

    Raises:
        ValueError: If a number in it is too long or out of range, or a string holds
            a lone surrogate.
    """
    return _value(text, 0)[0]


def encode_publication(
    data: str, offset: int, info: str | None, tags: str | None
) -> str:
    """Join a publication out of raw texts, which are not validated.

    Args:
        data: The payload.
        offset: Its place in the stream; 0 leaves the key out.
        info: The publisher; None leaves the key out.
        tags: The tags; None leaves the key out.
    """
    place = f',"offset":{offset}' if offset else ""
    publisher = "" if info is None else f',"info":{info}'
    labels = "" if tags is None else f',"tags":{tags}'
    return f'{{"data":{data}{place}{publisher}{labels}}}'


def encode_push(channel_quoted: str, publication: str) -> str:
    """Join the push of a publication out of raw texts, which are not validated."""
    return f'{{"push":{{"channel":{channel_quoted},"pub":{publication}}}}}'


def encode_publication_push(
    channel_quoted: str, data: str, offset: int, info: str | None, tags: str | None
) -> str:
    """Join a publication and its push in one step."""
    return encode_push(channel_quoted, encode_publication(data, offset, info, tags))


def _text(text: str | bytes) -> str:
    """Return *text* as `str` that can be encoded and nests within `DEPTH`."""
    if isinstance(text, bytes):
        text = text.decode()
    elif not isinstance(text, str):
        raise TypeError(f"expected str or bytes, got {type(text).__name__}")
    elif not text.isascii():
        text.encode()
    if text.count("[") + text.count("{") > DEPTH:
        _check_depth(text)
    return text


def _check_depth(text: str) -> None:
    """Refuse text that nests deeper than `DEPTH`; malformed text may pass."""
    # Each pass removes every innermost container, so brackets left after DEPTH
    # passes nest deeper. Both kinds of bracket have to be one kind for that.
    brackets = _not_bracket("", text).translate(_SQUARE)
    for _ in range(DEPTH):
        if not brackets:
            return
        brackets = brackets.replace("[]", "")
    if brackets:
        raise ValueError(f"nested deeper than {DEPTH}")


def _end(pattern: _Matcher, text: str, at: int) -> int:
    """Return where *pattern* ends if it matches at *at*."""
    match = pattern(text, at)
    if match is None:
        raise ValueError(f"unexpected text at character {at}")
    return match.end()


def _finish(text: str, at: int) -> None:
    """Refuse anything but whitespace from *at* on."""
    if _end(_space, text, at) != len(text):
        raise ValueError(f"unexpected text after the value, at character {at}")


def _scan(scanner: _Scanner, text: str, at: int) -> tuple[Any, int]:
    """Scan one value; return it and the place after it."""
    try:
        return scanner(text, at)
    except StopIteration:
        raise ValueError(f"expected a value at character {at}") from None
    except RecursionError:
        raise ValueError("nested too deeply for the stack") from None


def _raw(text: str, at: int) -> tuple[str, int]:
    """Return the value at *at* as raw text, and the place after it."""
    _, end = _scan(_validating, text, at)
    return text[at:end].replace("\n", ""), end


def _value(text: str, at: int) -> tuple[Any, int]:
    """Return the value at *at* as a Python object, and the place after it."""
    value, end = _scan(_parsing, text, at)
    if text.find("\\u", at, end) >= 0:
        _dump(value).encode()  # UnicodeEncodeError is the ValueError of the contract
    return value, end


def _members(text: str, at: int, read: Callable[[str, int], int]) -> int:
    """Walk the object at *at*; return the place after it.

    Args:
        text: The document.
        at: The place of the opening brace.
        read: Takes a key as written and where its value starts, and returns where
            the value ends.
    """
    if text[at : at + 1] != "{":
        raise ValueError(f"expected an object at character {at}")
    at = _end(_space, text, at + 1)
    if text[at : at + 1] == "}":
        return at + 1
    while True:
        key = _key(text, at)
        if key is None:
            raise ValueError(f"expected a key at character {at}")
        at = read(key[1], key.end())
        mark = _after_member(text, at)
        if mark is None:
            raise ValueError(f"expected a comma or the end at character {at}")
        at = mark.end()
        if mark[1] == "}":
            return at


def _fields(text: str, at: int, raw: frozenset[str]) -> tuple[dict[str, Any], int]:
    """Return the members of the object at *at*, and the place after it."""
    fields: dict[str, Any] = {}

    def read(key: str, at: int) -> int:
        if "\\" in key:
            return _scan(_validating, text, at)[1]
        if key in fields:
            raise ValueError(f"key repeated before character {at}")
        fields[key], end = _raw(text, at) if key in raw else _value(text, at)
        return end

    end = _members(text, at, read)
    return fields, end


def _command(text: str, at: int) -> tuple[tuple[int, str, dict[str, Any]], int]:
    """Return the command at *at*, and the place after it."""
    number: int | None = None
    method: str | None = None
    params: dict[str, Any] = {}

    def read(key: str, at: int) -> int:
        nonlocal number, method, params
        if "\\" in key:
            return _scan(_validating, text, at)[1]
        if key == "id":
            if number is not None:
                raise ValueError(f"id repeated before character {at}")
            number, end = _scan(_parsing, text, at)
            if type(number) is not int or not 0 <= number <= _MAX_ID:
                raise ValueError(f"id is not an integer from 0 to {_MAX_ID}")
            return end
        if method is not None:
            raise ValueError(f"second method before character {at}")
        method = key
        params, end = _fields(text, at, _DATA)
        return end

    end = _members(text, at, read)
    return (number or 0, method or "", params), end

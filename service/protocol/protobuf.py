"""The protobuf form of the client protocol: binary frames, length-prefixed messages.

Sessions, the hub and the store know typed commands and JSON text only. A binary frame
becomes the same commands as its JSON form, and a reply or push that `replies` wrote as
JSON becomes the same in protobuf. Each field that `replies` writes must therefore be in
`client.proto`; the tests compare the two.

In protobuf a payload is bytes of any kind; here it must be JSON, since the store and
the subscribers who use JSON could not take anything else (`commands.NOT_JSON`). It goes
out as the text that came in, with one exception: half a surrogate pair, which JSON can
escape and Unicode does not have, becomes U+FFFD, as in strings.

Frames are hostile until decoded: `decode` raises nothing but `CodecError`, and
allocates nothing for a length that the frame does not have. A message is never longer
than its JSON, so a bound on the one is a bound on the other.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

import msgspec
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as _Type
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError, Message

from _speedups import COMMANDS, check
from service.core.errors import CodecError
from service.core.priority import DroppableBytes, DroppableText
from service.protocol import client_pb2
from service.protocol.commands import NOT_JSON, Command, read_commands
from service.protocol.replies import PING

__all__ = ["Protobuf"]

_Convert = Callable[[Any], Any]
_Converters = dict[str, dict[str, _Convert]]

MEMO: Final = 2 * 1024 * 1024
"""Bytes of publications, in both forms, that are kept for the next reader: some
thousands, as clients that reconnect together ask for. Beyond that, all are
forgotten."""


def _length(frame: bytes, at: int) -> tuple[int, int]:
    """Return the varint at *at*, and where it ends."""
    value = 0
    for index, byte in enumerate(frame[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise CodecError("a length without an end")


def _scanned(data: bytes) -> tuple[int, str, dict[str, Any]]:
    try:
        message = _CLASSES["Command"].FromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        # The last two only from the library's interpreted side: UTF-8 and nesting.
        raise CodecError("not a command") from error
    fields = _fields("Command", message)
    number = fields.pop("id", 0)
    if not fields:
        return number, "", fields
    if len(fields) > 1:
        raise CodecError("a command with several methods")
    [(method, parameters)] = fields.items()
    if method == "connect" and parameters.get("data") is NOT_JSON:
        raise CodecError("data must be JSON")
    return number, method, parameters


class Protobuf:
    """The protobuf form, as a `Codec`.

    The last messages are kept: a publication to a thousand subscribers is one text, or
    three where some take deltas (`replies.delta_body`), that is put into a thousand
    outboxes one after the other, and each is encoded once.
    """

    __slots__ = ("_before", "_last")

    name = "protobuf"
    binary = True
    gap = 0
    plain = False
    size = staticmethod(len)
    join = b"".join

    def __init__(self) -> None:
        self._last = (PING, _varint(0))
        self._before = (self._last, self._last)

    @staticmethod
    def decode(frame: bytes) -> list[Command]:
        """Return the commands of a frame, in which each stands after its length.

        Raises:
            CodecError: The frame is not one or more well-formed commands.
        """
        scanned: list[tuple[int, str, dict[str, Any]]] = []
        at, end = 0, len(frame)
        while at < end:
            size = frame[at]
            if size < 0x80:
                at += 1
            else:
                size, at = _length(frame, at)
            if size > end - at:
                raise CodecError(f"a command of {size} bytes where {end - at} are left")
            if len(scanned) == COMMANDS:
                raise CodecError(f"more than {COMMANDS} commands")
            scanned.append(_scanned(frame[at : at + size]) if size else (0, "", {}))
            at += size
        if not scanned:
            raise CodecError("an empty frame")
        return read_commands(scanned)

    def encode(self, text: str) -> bytes:
        """Return a reply or push after its length; of several lines, one after another.

        Raises:
            CodecError: It has no form in protobuf: a fault of the caller.
        """
        known, data = self._last
        if known is text:
            return data
        for known, data in self._before:
            if known is text:
                return data
        plain = str(text)  # msgspec takes no subclass
        data = b"".join([_encoded(line) for line in plain.split("\n")])
        if isinstance(text, DroppableText):
            data = DroppableBytes(data, text.priority)
        self._before = (self._last, self._before[0])
        self._last = (text, data)
        return data


def _encoded(text: str) -> bytes:
    try:
        try:
            record = _from_json(text)
        except msgspec.DecodeError:
            record = _from_json(_ESCAPES.sub(_replaced, text))
        body = _built("Reply", record).SerializeToString()
    except (ValueError, TypeError, RecursionError) as error:
        raise CodecError("a message without a form in protobuf") from error
    return _varint(len(body)) + body


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


# Pairs come before halves; an escaped backslash is neither.
_ESCAPES: Final = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)


def _replaced(escape: re.Match[str]) -> str:
    return "\\ufffd" if escape[1] else escape[0]


# The schema, as `client.proto` has it.

_SERIALIZED: Final = {"pub": "Publication", "publications": "Publication"}
"""Fields that hold messages as bytes: the field's name, and the message's."""


class _Field(typing.NamedTuple):
    """A field of a message.

    Attributes:
        type: As in `FieldDescriptorProto`; the values' type if it is a map.
        message: The name of the message that it holds, "" for none.
        many: "list", "map" (from strings), or "" for one.
    """

    name: str
    type: int
    message: str
    many: str


def _read_schema() -> dict[str, list[_Field]]:
    file = FileDescriptorProto()
    client_pb2.DESCRIPTOR.CopyToProto(file)
    schema: dict[str, list[_Field]] = {}
    for message in file.message_type:
        values = {entry.name: entry.field[1] for entry in message.nested_type}
        fields = schema[message.name] = []
        for field in message.field:
            many = "list" if field.label == _Type.LABEL_REPEATED else ""
            item = field
            if _last(field.type_name) in values:
                # A map: on the wire, a list of entries with a key and a value.
                item, many = values[_last(field.type_name)], "map"
            kind = _last(item.type_name)
            fields.append(_Field(field.name, item.type, kind, many))
    return schema


def _last(name: str) -> str:
    return name.rpartition(".")[2]


_SCHEMA: Final = _read_schema()
_CLASSES: Final[dict[str, type[Message]]] = {
    name: getattr(client_pb2, name) for name in _SCHEMA
}


# Between a message and its fields by name. A field without a converter stays as it is.


def _fields(kind: str, message: Message) -> dict[str, Any]:
    """Return the fields of a message."""
    converters = _READING[kind]
    fields = {}
    for descriptor, value in message.ListFields():
        name = descriptor.name
        fields[name] = converters[name](value) if name in converters else value
    return fields


def _built(kind: str, fields: dict[str, Any]) -> Message:
    """Return the message of *fields*, which are changed."""
    converters = _WRITING[kind]
    for name in fields:
        if name in converters:
            fields[name] = converters[name](fields[name])
    return _CLASSES[kind](**fields)


class _Serialized:
    """Serializes the messages that stand in others as bytes, each one once."""

    __slots__ = ("_known", "_size")

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}
        self._size = 0

    def __call__(self, kind: str, json: msgspec.Raw) -> bytes:
        text = bytes(json)
        data = self._known.get(text)
        if data is None:
            fields = _SERIALIZED_FROM_JSON[kind](text)
            if "delta" in fields:
                fields["data"] = msgspec.json.decode(fields["data"], type=str).encode()
            data = _built(kind, fields).SerializeToString()
            self._size += len(text) + len(data)
            if self._size > MEMO:
                self._known.clear()
                self._size = len(text) + len(data)
            self._known[text] = data
        return data


def _payload(data: bytes) -> object:
    try:
        return check(data)
    except ValueError:
        return NOT_JSON


def _list(convert: _Convert, values: Any) -> list[Any]:
    return [convert(value) for value in values]


def _map(convert: _Convert, values: Any) -> dict[str, Any]:
    return {key: convert(value) for key, value in values.items()}


def _converters(
    payload: _Convert,
    message: Callable[[str, Any], Any],
    serialized: Callable[[str, Any], Any],
) -> _Converters:
    converters: _Converters = {}
    convert: _Convert
    for kind, fields in _SCHEMA.items():
        converters[kind] = {}
        for field in fields:
            if field.name in _SERIALIZED:
                convert = partial(serialized, _SERIALIZED[field.name])
            elif field.message:
                convert = partial(message, field.message)
            elif field.type == _Type.TYPE_BYTES:
                convert = payload
            elif field.many:
                convert = str  # as it is, but out of the library's container
            else:
                continue
            if field.many:
                convert = partial(_map if field.many == "map" else _list, convert)
            converters[kind][field.name] = convert
    return converters


_READING: Final = _converters(_payload, _fields, _fields)
_WRITING: Final = _converters(bytes, _built, _Serialized())


# JSON to fields by name.


_TYPES: Final[dict[int, Any]] = {
    _Type.TYPE_BOOL: bool,
    _Type.TYPE_BYTES: msgspec.Raw,
    _Type.TYPE_STRING: str,
}  # else int


@cache
def _record(kind: str) -> Any:
    """Return the type that msgspec reads a message of *kind* as."""
    make: Any = typing.TypedDict  # for a checker, its fields are not known
    return make(
        kind, {field.name: _type(field) for field in _SCHEMA[kind]}, total=False
    )


def _type(field: _Field) -> Any:
    one: Any = _record(field.message) if field.message else _TYPES.get(field.type, int)
    return {"": one, "list": list[one], "map": dict[str, one]}[field.many]


def _reader(kind: str) -> Callable[[str | bytes], dict[str, Any]]:
    decoder: Any = msgspec.json.Decoder(_record(kind))
    read: Callable[[str | bytes], dict[str, Any]] = decoder.decode
    return read


_from_json: Final = _reader("Reply")
_SERIALIZED_FROM_JSON: Final = {
    kind: _reader(kind) for kind in set(_SERIALIZED.values())
}

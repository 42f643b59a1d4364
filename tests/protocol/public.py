"""Protobuf as an official client library compiled it, and as plain Python objects.

Independent of ours: another table, other generated code, another walk.
"""

from __future__ import annotations

import json
from typing import Any

from centrifuge.protocol import client_pb2
from google.protobuf.message import Message

__all__ = ["commands", "frame", "messages", "plain", "sent"]

Command, Reply = client_pb2.Command, client_pb2.Reply


def frame(*messages: Message | bytes) -> bytes:
    """Join messages, each after its length."""
    data = b""
    for message in messages:
        body = message if isinstance(message, bytes) else message.SerializeToString()
        size = len(body)
        while size > 127:
            data += bytes([size % 128 + 128])
            size //= 128
        data += bytes([size]) + body
    return data


def _split(data: bytes) -> list[bytes]:
    messages = []
    while data:
        size = shift = 0
        while True:
            byte, data = data[0], data[1:]
            size += byte % 128 << shift
            shift += 7
            if byte < 128:
                break
        assert size <= len(data)
        messages.append(data[:size])
        data = data[size:]
    return messages


def messages(data: bytes) -> list[Any]:
    """Return the replies and pushes of a frame, as `plain` objects."""
    return [plain(Reply.FromString(one)) for one in _split(data)]


def commands(*objects: dict[str, Any]) -> bytes:
    """Return the frame of commands that are given as JSON clients would write them."""
    return frame(*(_built(Command.DESCRIPTOR, one) for one in objects))


def _built(descriptor: Any, fields: dict[str, Any]) -> Message:
    message = getattr(client_pb2, descriptor.name)()
    for name, value in fields.items():
        field = descriptor.fields_by_name[name]
        if value is None:
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            target = getattr(message, name)
            for key, item in value.items():
                if entry.message_type:
                    target[key].CopyFrom(_built(entry.message_type, item))
                else:
                    target[key] = item
        elif field.message_type:
            getattr(message, name).CopyFrom(_built(field.message_type, value))
        elif field.type == field.TYPE_BYTES:
            setattr(message, name, json.dumps(value).encode())
        else:
            setattr(message, name, value)
    return message


def plain(message: Message) -> dict[str, Any]:
    """Return what a message says: payloads parsed, and nothing that is zero."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        found[field.name] = _plain(field, value)
    return found


def _plain(field: Any, value: Any) -> Any:
    if field.message_type and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {key: _plain(entry, item) for key, item in value.items()}
    if field.is_repeated:
        return [plain(item) for item in value]
    if field.message_type:
        return plain(value)
    return json.loads(value) if field.type == field.TYPE_BYTES else value


def sent(text: str) -> dict[str, Any]:
    """Return what a JSON reply or push says, in the form of `plain`.

    A field that the public schema does not have is an error.
    """
    return _sent(Reply.DESCRIPTOR, json.loads(text))


def _sent(descriptor: Any, fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in fields.items():
        field = descriptor.fields_by_name[name]
        if field.type == field.TYPE_BYTES:
            # To a subscription that takes deltas, a payload is text in a string.
            found[name] = json.loads(value) if "delta" in fields else value
        elif field.message_type and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name["value"]
            inner = entry.message_type
            items = {k: _sent(inner, v) if inner else v for k, v in value.items()}
            if items:
                found[name] = items
        elif field.is_repeated:
            if value:
                found[name] = [_sent(field.message_type, item) for item in value]
        elif field.message_type:
            found[name] = _sent(field.message_type, value)
        elif value:
            found[name] = value
    return found

"""`client.proto` against its generated module, and against the public schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from centrifuge.protocol import client_pb2

from service.protocol import client_pb2 as ours_pb2

OURS = ours_pb2.DESCRIPTOR.message_types_by_name
PUBLIC = client_pb2.DESCRIPTOR.message_types_by_name

# Newer than the client library: the epoch of a publication.
NEWER = {("Publication", "epoch", 14)}

# A command may carry these and nothing here reads them: skipped, as unknown fields.
UNREAD = {("ConnectRequest", "flag")} | {
    ("FilterNode", name) for name in ("op", "key", "cmp", "val", "vals", "nodes")
}

# For transports or features that are not here; nothing here writes them.
UNWRITTEN = {
    ("Push", "connect"),
    ("Push", "id"),
    ("Push", "refresh"),
    ("Reply", "ping"),
    ("SubscribeResult", "id"),
}


# Put into others as bytes, already serialized: the same on the wire.
WHOLE = {"Publication"}


def kind(field: Any) -> tuple[object, ...]:
    message = field.message_type and field.message_type.name
    type_ = field.type
    if message in WHOLE:
        type_, message = field.TYPE_BYTES, None
    return (field.number, type_, field.is_repeated, message)


@pytest.mark.parametrize("name", OURS)
def test_a_message_is_that_of_the_public_schema(name: str) -> None:
    ours = {field.name: field for field in OURS[name].fields}
    theirs = {field.name: field for field in PUBLIC[name].fields}
    for field in ours.values():
        if (name, field.name, field.number) not in NEWER:
            assert kind(field) == kind(theirs[field.name])
    missing = {(name, field) for field in theirs.keys() - ours.keys()}
    assert missing == {row for row in UNREAD | UNWRITTEN if row[0] == name}


def test_it_takes_no_names_that_client_libraries_register() -> None:
    # Both are in one descriptor pool, which refuses a second file of the same name.
    assert ours_pb2.DESCRIPTOR.package == "steadwire"
    assert ours_pb2.DESCRIPTOR.name == "service/protocol/client.proto"
    assert client_pb2.DESCRIPTOR.package != "steadwire"
    assert client_pb2.DESCRIPTOR.name != ours_pb2.DESCRIPTOR.name


def written(field: Any) -> str:
    """Return a field of the generated module as one writes it in a .proto."""
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        key, value = (entry.fields_by_name[name] for name in ("key", "value"))
        return f"map<{spelled(key)}, {spelled(value)}> {field.name} = {field.number};"
    many = "repeated " if field.is_repeated else ""
    return f"{many}{spelled(field)} {field.name} = {field.number};"


def spelled(field: Any) -> str:
    if field.message_type is not None:
        return str(field.message_type.name)
    names = ("bool", "bytes", "int32", "int64", "string", "uint32", "uint64")
    types = {getattr(field, f"TYPE_{name.upper()}"): name for name in names}
    return types[field.type]


def test_the_generated_module_is_that_of_the_proto() -> None:
    path = Path(ours_pb2.__file__).with_name("client.proto")
    text = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
    bodies = dict(re.findall(r"message (\w+) \{([^}]*)\}", text))
    lines = {
        name: [" ".join(line.split()) for line in body.splitlines() if line.strip()]
        for name, body in bodies.items()
    }
    assert lines == {
        name: [written(field) for field in message.fields]
        for name, message in OURS.items()
    }

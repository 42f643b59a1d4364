"""The table of messages against the public schema, as a client library compiled it."""

from __future__ import annotations

from typing import Any

import pytest
from centrifuge.protocol import client_pb2

from service.protocol.schema import CLASSES

PUBLIC = client_pb2.DESCRIPTOR.message_types_by_name

# Newer than the client library: the epoch of a publication.
NEWER = {("Publication", "epoch", 14)}

# What a command may carry and nothing here reads: skipped, as whatever is unknown.
UNREAD = {("ConnectRequest", "flag")} | {
    ("FilterNode", name) for name in ("op", "key", "cmp", "val", "vals", "nodes")
}

# What is for transports or features that are not here, and nothing here writes.
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


@pytest.mark.parametrize("name", CLASSES)
def test_a_message_is_that_of_the_public_schema(name: str) -> None:
    ours = {field.name: field for field in CLASSES[name].DESCRIPTOR.fields}
    theirs = {field.name: field for field in PUBLIC[name].fields}
    for field in ours.values():
        if (name, field.name, field.number) not in NEWER:
            assert kind(field) == kind(theirs[field.name])
    missing = {(name, field) for field in theirs.keys() - ours.keys()}
    assert missing == {row for row in UNREAD | UNWRITTEN if row[0] == name}


def test_it_does_not_take_names_in_the_pool_that_libraries_share() -> None:
    assert CLASSES["Command"].DESCRIPTOR.full_name == "steadwire.Command"
    assert CLASSES["Command"].DESCRIPTOR.file.pool is not client_pb2.DESCRIPTOR.pool

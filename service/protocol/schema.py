"""The messages of the protobuf protocol, by field number.

What a build step would make of `client.proto` is made at import from the table below,
in a descriptor pool of its own: a client library may bring the same names into the
common one. The tests compare the table with the public schema.

Only what we read or write is here. A field that is not is skipped like any unknown
one, and so costs nothing, however deep it is: the content of a `FilterNode` is one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from google.protobuf.descriptor_pb2 import DescriptorProto as _MessageType
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as _FieldType
from google.protobuf.descriptor_pb2 import FileDescriptorProto as _FileType
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message as _Message
from google.protobuf.message_factory import GetMessageClass

__all__ = ["CLASSES", "SCALARS", "SCHEMA", "WHOLE", "Field"]

_TABLE = """
Command: 1 uint32 id, 4 ConnectRequest connect, 5 SubscribeRequest subscribe,
    6 UnsubscribeRequest unsubscribe, 7 PublishRequest publish,
    8 PresenceRequest presence, 9 PresenceStatsRequest presence_stats,
    10 HistoryRequest history, 11 PingRequest ping, 12 SendRequest send,
    13 RPCRequest rpc, 14 RefreshRequest refresh, 15 SubRefreshRequest sub_refresh
ConnectRequest: 1 string token, 2 bytes data, 3 map SubscribeRequest subs,
    4 string name, 5 string version, 6 map string headers
SubscribeRequest: 1 string channel, 2 string token, 3 bool recover, 6 string epoch,
    7 uint64 offset, 8 bytes data, 9 bool positioned, 10 bool recoverable,
    11 bool join_leave, 12 string delta, 13 FilterNode tf, 14 int64 flag
FilterNode:
UnsubscribeRequest: 1 string channel
PublishRequest: 1 string channel, 2 bytes data
PresenceRequest: 1 string channel
PresenceStatsRequest: 1 string channel
HistoryRequest: 1 string channel, 7 int32 limit, 8 StreamPosition since, 9 bool reverse
StreamPosition: 1 uint64 offset, 2 string epoch
PingRequest:
SendRequest: 1 bytes data
RPCRequest: 1 bytes data, 2 string method
RefreshRequest: 1 string token
SubRefreshRequest: 1 string channel, 2 string token

Reply: 1 uint32 id, 2 Error error, 4 Push push, 5 ConnectResult connect,
    6 SubscribeResult subscribe, 7 UnsubscribeResult unsubscribe,
    8 PublishResult publish, 9 PresenceResult presence,
    10 PresenceStatsResult presence_stats, 11 HistoryResult history,
    13 RPCResult rpc, 14 RefreshResult refresh, 15 SubRefreshResult sub_refresh
Error: 1 uint32 code, 2 string message, 3 bool temporary
ConnectResult: 1 string client, 2 string version, 3 bool expires, 4 uint32 ttl,
    5 bytes data, 6 map SubscribeResult subs, 7 uint32 ping, 8 bool pong,
    9 string session, 10 string node, 11 int64 time
SubscribeResult: 1 bool expires, 2 uint32 ttl, 3 bool recoverable, 6 string epoch,
    7 list Publication publications, 8 bool recovered, 9 uint64 offset,
    10 bool positioned, 11 bytes data, 12 bool was_recovering, 13 bool delta
UnsubscribeResult:
PublishResult:
PresenceResult: 1 map ClientInfo presence
PresenceStatsResult: 1 uint32 num_clients, 2 uint32 num_users
HistoryResult: 1 list Publication publications, 2 string epoch, 3 uint64 offset
RPCResult: 1 bytes data
RefreshResult: 1 string client, 2 string version, 3 bool expires, 4 uint32 ttl
SubRefreshResult: 1 bool expires, 2 uint32 ttl
ClientInfo: 1 string user, 2 string client, 3 bytes conn_info, 4 bytes chan_info
Publication: 4 bytes data, 5 ClientInfo info, 6 uint64 offset, 7 map string tags,
    8 bool delta, 9 int64 time, 10 string channel, 14 string epoch

Push: 2 string channel, 4 Publication pub, 5 Join join, 6 Leave leave,
    7 Unsubscribe unsubscribe, 8 Message message, 9 Subscribe subscribe,
    11 Disconnect disconnect
Join: 1 ClientInfo info
Leave: 1 ClientInfo info
Unsubscribe: 2 uint32 code, 3 string reason
Message: 1 bytes data
Subscribe: 1 bool recoverable, 4 string epoch, 5 uint64 offset, 6 bool positioned,
    7 bytes data
Disconnect: 1 uint32 code, 2 string reason, 3 bool reconnect
"""

SCALARS: Final = {
    "bool": _FieldType.TYPE_BOOL,
    "bytes": _FieldType.TYPE_BYTES,
    "int32": _FieldType.TYPE_INT32,
    "int64": _FieldType.TYPE_INT64,
    "string": _FieldType.TYPE_STRING,
    "uint32": _FieldType.TYPE_UINT32,
    "uint64": _FieldType.TYPE_UINT64,
}
"""The types of fields that are no messages."""


WHOLE: Final = frozenset(("Publication",))
"""Messages that are put into others as bytes, already serialized: on the wire that is
what a message in another one is. What is read by thousands is serialized once."""


class Field(NamedTuple):
    """A row of the table.

    Attributes:
        name: As in JSON.
        kind: A type of `SCALARS`, or a message's name.
        many: "list", "map" (from strings), or "" for one.
    """

    number: int
    name: str
    kind: str
    many: str


def _read(table: str) -> dict[str, tuple[Field, ...]]:
    schema = {}
    for line in table.replace("\n    ", " ").splitlines():
        if line:
            message, _, rows = line.partition(":")
            fields = []
            for row in rows.split(",") if rows else ():
                number, *many, kind, name = row.split()
                fields.append(Field(int(number), name, kind, "".join(many)))
            schema[message] = tuple(fields)
    return schema


SCHEMA: Final = _read(_TABLE)
"""The fields of each message, by the message's name."""

_PACKAGE: Final = "steadwire"


def _add(message: _MessageType, field: Field) -> None:
    number, name, kind, many = field
    one = message.field.add(name=name, number=number, label=_FieldType.LABEL_OPTIONAL)
    if many:
        one.label = _FieldType.LABEL_REPEATED
    if many == "map":
        # On the wire a map is a list of entries with a key and a value.
        entry = message.nested_type.add(name=f"{name.title()}Entry")
        entry.options.map_entry = True
        _add(entry, Field(1, "key", "string", ""))
        _add(entry, Field(2, "value", kind, ""))
        kind = f"{message.name}.{entry.name}"
    if kind in WHOLE:
        one.type = _FieldType.TYPE_BYTES
    elif kind in SCALARS:
        one.type = SCALARS[kind]
    else:
        one.type = _FieldType.TYPE_MESSAGE
        one.type_name = f".{_PACKAGE}.{kind}"


def _build() -> dict[str, type[_Message]]:
    file = _FileType(name="steadwire.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add(message, field)
    pool = DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in SCHEMA
    }


CLASSES: Final = _build()
"""The class of each message, by the message's name."""

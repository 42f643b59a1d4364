"""Commands as clients write them in JSON, and the typed requests that they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.core.errors import CodecError, ReplyError
from service.core.model import Channel, Position, RawJson
from service.protocol.commands import (
    ConnectRequest,
    HistoryRequest,
    Malformed,
    PingRequest,
    Pong,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    RpcRequest,
    SendRequest,
    SubRefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
)
from service.protocol.json import Json

CH = Channel("ch")


def request(method: str, /, **fields: object) -> Any:
    [(number, name, request)] = Json.decode(json.dumps({"id": 1, method: fields}))
    assert (number, name) == (1, method)
    return request


def malformed(method: str, /, **fields: object) -> str:
    """Return why the command is malformed."""
    found = request(method, **fields)
    assert isinstance(found, Malformed), found
    assert isinstance(found.error, CodecError)
    return str(found.error)


# Frames.

CLIENTS = {
    # Measured: the SDKs write these.
    "js connect": (
        '{"connect":{"token":"t0","name":"js"},"id":1}\n'
        '{"subscribe":{"channel":"ch","token":"s0","flag":1},"id":2}',
        [
            (1, "connect", ConnectRequest("t0", None, "js", "", {}, {})),
            (
                2,
                "subscribe",
                SubscribeRequest(CH, None, False, False, False, "s0", None),
            ),
        ],
    ),
    "python history": (
        '{"id": 3, "history": {"channel": "ch", "limit": 0, "reverse": false, '
        '"since": {"offset": 0, "epoch": ""}}}',
        [(3, "history", HistoryRequest(CH, 0, False, Position(0, "")))],
    ),
    "pong": ("{}", [(0, "", Pong())]),
    "pong among commands": (
        '{}\n{"id":1,"rpc":{}}\n',
        [(0, "", Pong()), (1, "rpc", RpcRequest("", None))],
    ),
    "send": ('{"send":{"data":[1, 2]}}', [(0, "send", SendRequest())]),
    "payload with spaces": (
        '{"id":1,"rpc":{"data":[1, 2]}}',
        [(1, "rpc", RpcRequest("", RawJson("[1, 2]")))],
    ),
    "payload with newlines": (
        '{"id":1,"publish":{"channel":"ch","data":{"a":\n1}}}',
        [(1, "publish", PublishRequest(CH, RawJson('{"a":1}')))],
    ),
    "largest id": (
        '{"id":4294967295,"rpc":{}}',
        [(4294967295, "rpc", RpcRequest("", None))],
    ),
    "carriage returns": (
        '{"id":1,"rpc":{}}\r\n',
        [(1, "rpc", RpcRequest("", None))],
    ),
    "what newer SDKs may add": (
        '{"id":1,"connect":{"flag":3,"dict":[1],"profile":{}}}',
        [(1, "connect", ConnectRequest("", None, "", "", {}, {}))],
    ),
}


@pytest.mark.parametrize(("frame", "commands"), CLIENTS.values(), ids=CLIENTS.keys())
@pytest.mark.parametrize("kind", [str, bytes])
def test_what_clients_write(frame: str, commands: Any, kind: type) -> None:
    given = frame if kind is str else frame.encode()
    assert Json.decode(given) == commands


@pytest.mark.parametrize(
    "frame",
    ["", "\n", "{}\n\n{}", "[]", "1", "{", '{"id":1', '{"id":"1"}', b"\xff", "nul"],
)
def test_what_is_no_frame_is_one_kind_of_error(frame: str | bytes) -> None:
    with pytest.raises(CodecError):
        Json.decode(frame)


# Every method with all its fields.


@pytest.mark.parametrize(
    ("method", "fields", "expected"),
    [
        (
            "connect",
            {
                "token": "t",
                "data": {"a": 1},
                "name": "js",
                "version": "1.2",
                "headers": {"X-A": "1"},
                "subs": {
                    "ch": {"recover": True, "offset": 4, "epoch": "e"},
                    "new": {"offset": 4, "epoch": "e"},
                },
            },
            ConnectRequest(
                "t",
                RawJson('{"a": 1}'),
                "js",
                "1.2",
                {"X-A": "1"},
                {CH: Position(4, "e")},
            ),
        ),
        (
            "subscribe",
            {
                "channel": "ch",
                "token": "t",
                "recover": True,
                "offset": 4,
                "epoch": "e",
                "data": [1],
                "flag": 3,
                "join_leave": True,
            },
            SubscribeRequest(
                CH, Position(4, "e"), True, True, True, "t", RawJson("[1]")
            ),
        ),
        (
            "subscribe",
            {"channel": "ch", "recoverable": True, "offset": 4},
            SubscribeRequest(CH, None, False, True, False, "", None),
        ),
        (
            "subscribe",
            {"channel": "ch", "positioned": True, "flag": 1},
            SubscribeRequest(CH, None, False, True, False, "", None),
        ),
        (
            "subscribe",
            {"channel": "ch", "recover": True},
            SubscribeRequest(CH, Position(0, ""), False, True, False, "", None),
        ),
        ("unsubscribe", {"channel": "ch"}, UnsubscribeRequest(CH)),
        (
            "publish",
            {"channel": "ch", "data": None},
            PublishRequest(CH, RawJson("null")),
        ),
        (
            "history",
            {"channel": "ch", "limit": -1, "reverse": True, "since": {"offset": 5}},
            HistoryRequest(CH, -1, True, Position(5, "")),
        ),
        ("history", {"channel": "ch"}, HistoryRequest(CH, 0, False, None)),
        ("presence", {"channel": "ch"}, PresenceRequest(CH)),
        ("presence_stats", {"channel": "ch"}, PresenceStatsRequest(CH)),
        ("ping", {"what": 1}, PingRequest()),
        ("send", {"data": 1}, SendRequest()),
        ("rpc", {"method": "m", "data": 1}, RpcRequest("m", RawJson("1"))),
        ("refresh", {"token": "t"}, RefreshRequest("t")),
        ("sub_refresh", {"channel": "ch", "token": "t"}, SubRefreshRequest(CH, "t")),
        ("sub_refresh", {"token": "t"}, SubRefreshRequest(Channel(""), "t")),
    ],
)
def test_a_request_holds_the_fields(
    method: str, fields: dict[str, Any], expected: object
) -> None:
    assert request(method, **fields) == expected


# Fields.

TEXTS = {
    "connect": ["token", "name", "version"],
    "subscribe": ["channel", "token"],
    "unsubscribe": ["channel"],
    "publish": ["channel"],
    "history": ["channel"],
    "presence": ["channel"],
    "presence_stats": ["channel"],
    "rpc": ["method"],
    "refresh": ["token"],
    "sub_refresh": ["channel", "token"],
}
BOOLEANS = {
    "subscribe": ["recover", "positioned", "recoverable", "join_leave"],
    "history": ["reverse"],
}
WRONG: list[tuple[dict[str, list[str]], list[object]]] = [
    (TEXTS, [1, True, [], {}, 1.5]),
    (BOOLEANS, [1, 0, "true", [], {}, 1.5]),
    ({"subscribe": ["flag"]}, ["1", True, 1.5, 1.0, [], {}, -1, 2**53]),
    ({"history": ["limit"]}, ["1", True, 1.5, 1.0, [], {}, -2, 2**53]),
    ({"connect": ["headers", "subs"], "history": ["since"]}, [1, "x", [], True]),
]


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [
        (method, key, value)
        for keys, values in WRONG
        for method in keys
        for key in keys[method]
        for value in values
    ],
)
def test_a_field_of_the_wrong_type_is_named(
    method: str, key: str, value: object
) -> None:
    assert key in malformed(method, **{"channel": "ch", "data": 1, key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("offset", -1), ("offset", 2**53), ("epoch", 1)]
)
def test_a_position_of_the_wrong_types_is_malformed(key: str, value: object) -> None:
    position = {key: value}
    assert key in malformed("subscribe", channel="ch", recover=True, **position)
    assert key in malformed("history", channel="ch", since=position)
    assert key in malformed("connect", subs={"ch": {"recover": True, **position}})
    # Nobody looks at it without `recover`.
    assert request("subscribe", channel="ch", **position).since is None
    assert request("connect", subs={"ch": position}).positions == {}


def test_the_subs_of_a_connect_are_objects() -> None:
    assert "subs" in malformed("connect", subs={"ch": 1})
    assert "recover" in malformed("connect", subs={"ch": {"recover": 1}})


@pytest.mark.parametrize(
    ("method", "key"),
    [
        (method, key)
        for keys in (TEXTS, BOOLEANS, {"history": ["limit", "since"]})
        for method in keys
        for key in keys[method]
        if key != "channel"
    ],
)
def test_null_is_an_absent_field(method: str, key: str) -> None:
    fields = {"channel": "ch", "data": 1}
    assert request(method, **fields, **{key: None}) == request(method, **fields)


@pytest.mark.parametrize(
    "method",
    ["subscribe", "unsubscribe", "publish", "history", "presence", "presence_stats"],
)
@pytest.mark.parametrize("channel", [{}, {"channel": ""}, {"channel": None}])
def test_a_channel_must_be_named(method: str, channel: dict[str, Any]) -> None:
    assert "channel" in malformed(method, data=1, **channel)


def test_a_publish_must_have_a_payload() -> None:
    assert "data" in malformed("publish", channel="ch")


def test_a_filter_by_tags_is_refused() -> None:
    found = request("subscribe", channel="ch", tf={})
    assert isinstance(found, Malformed) and isinstance(found.error, ReplyError)
    assert found.error.error.code == 107
    assert isinstance(request("subscribe", channel="ch", tf=None), SubscribeRequest)


@pytest.mark.parametrize("frame", ['{"id":1,"nonsense":{}}', '{"id":1}', '{"x":{}}'])
def test_an_unknown_method_is_malformed(frame: str) -> None:
    [(_, _, found)] = Json.decode(frame)
    assert isinstance(found, Malformed) and isinstance(found.error, CodecError)


def test_a_malformed_command_does_not_spoil_those_before_it() -> None:
    good, bad = '{"id":1,"presence":{"channel":"ch"}}', '{"id":2,"presence":{}}'
    (_, _, first), (_, _, second) = Json.decode(f"{good}\n{bad}")
    assert first == PresenceRequest(CH)
    assert isinstance(second, Malformed)


def test_what_follows_a_command_that_ends_the_connection_is_not_read() -> None:
    good, bad = '{"id":1,"presence":{"channel":"ch"}}', '{"id":2,"presence":{}}'
    (_, _, first), second, third = Json.decode(f"{bad}\n{good}\n{bad}")
    assert isinstance(first, Malformed)
    assert second == (1, "presence", first)
    assert third[2] is first


def test_a_command_that_is_refused_does_not_spoil_those_after_it() -> None:
    good = '{"id":1,"presence":{"channel":"ch"}}'
    bad = '{"id":2,"subscribe":{"channel":"ch","tf":{}}}'
    (_, _, first), (_, _, second) = Json.decode(f"{bad}\n{good}")
    assert isinstance(first, Malformed)
    assert second == PresenceRequest(CH)

"""Every reply and push, spelled out as clients read it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.core import errors
from service.core.errors import Close, ErrorReply, Unsubscribe
from service.core.model import (
    ClientId,
    ClientInfo,
    Joined,
    Position,
    Publication,
    RawJson,
    UserId,
)
from service.protocol import replies

ERRORS = {
    100: '{"id":5,"error":{"code":100,"message":"internal server error",'
    '"temporary":true}}',
    101: '{"id":5,"error":{"code":101,"message":"unauthorized"}}',
    102: '{"id":5,"error":{"code":102,"message":"unknown channel"}}',
    103: '{"id":5,"error":{"code":103,"message":"permission denied"}}',
    104: '{"id":5,"error":{"code":104,"message":"method not found"}}',
    105: '{"id":5,"error":{"code":105,"message":"already subscribed"}}',
    106: '{"id":5,"error":{"code":106,"message":"limit exceeded"}}',
    107: '{"id":5,"error":{"code":107,"message":"bad request"}}',
    108: '{"id":5,"error":{"code":108,"message":"not available"}}',
    109: '{"id":5,"error":{"code":109,"message":"token expired"}}',
    110: '{"id":5,"error":{"code":110,"message":"expired"}}',
    111: '{"id":5,"error":{"code":111,"message":"too many requests","temporary":true}}',
    112: '{"id":5,"error":{"code":112,"message":"unrecoverable position"}}',
}

CLOSES = {
    3001: "shutdown",
    3004: "internal server error",
    3005: "connection expired",
    3006: "subscription expired",
    3008: "slow",
    3009: "write error",
    3010: "insufficient state",
    3011: "force reconnect",
    3012: "no pong",
    3013: "too many requests",
    3500: "invalid token",
    3501: "bad request",
    3502: "stale",
    3503: "force disconnect",
    3504: "connection limit",
    3505: "channel limit",
    3506: "inappropriate protocol",
    3507: "permission denied",
    3508: "not available",
    3509: "too many errors",
}

UNSUBSCRIBES = {
    2000: "server unsubscribe",
    2500: "insufficient state",
    2501: "subscription expired",
    2502: "state invalidated",
}


def table(kind: type) -> list[Any]:
    return [value for value in vars(errors).values() if type(value) is kind]


# The tables.


def test_every_error_on_the_wire() -> None:
    rows = table(ErrorReply)
    assert len({row.code for row in rows}) == len(rows)
    for row in rows:
        assert replies.error_reply(5, row) == ERRORS[row.code]
    assert {100, 102, 103, 105, 106, 107, 108, 111, 112} <= {row.code for row in rows}


@pytest.mark.requirement("B121", "L8", "L9")
def test_every_close_is_one_of_the_protocol() -> None:
    rows = table(Close)
    assert len({row.code for row in rows}) == len(rows)
    for row in rows:
        assert row.reason == CLOSES[row.code]


def test_every_unsubscribe_is_one_of_the_protocol() -> None:
    for row in table(Unsubscribe):
        assert row.reason == UNSUBSCRIBES[row.code]


@pytest.mark.parametrize("row", table(Close) + table(Unsubscribe), ids=repr)
def test_no_reason_can_be_taken_for_json(row: Close) -> None:
    # It would make the JavaScript SDK give up, whatever the code.
    assert 0 < len(row.reason.encode()) < 123
    with pytest.raises(ValueError):
        json.loads(row.reason)


def test_the_message_of_an_application_is_quoted() -> None:
    error = ErrorReply(1000, 'say "please"\n', temporary=True)
    assert replies.error_reply(5, error) == (
        '{"id":5,"error":{"code":1000,"message":"say \\"please\\"\\n",'
        '"temporary":true}}'
    )


# Replies.


def test_a_ping() -> None:
    assert replies.PING == "{}"


@pytest.mark.parametrize("method", ["unsubscribe", "publish"])
def test_an_empty_reply(method: str) -> None:
    assert replies.empty_reply(7, method) == f'{{"id":7,"{method}":{{}}}}'


def test_a_connect_reply() -> None:
    assert replies.connect_reply(1, "c1", "0.1.0", 25.0) == (
        '{"id":1,"connect":{"client":"c1","version":"0.1.0","ping":25,"pong":true}}'
    )


def test_a_connect_reply_with_everything() -> None:
    text = replies.connect_reply(
        1,
        "c1",
        "0.1.0",
        25.0,
        data=RawJson('{"a":1}'),
        subscriptions=[("a", '{"offset":1}'), ('b"', "{}")],
    )
    assert text == (
        '{"id":1,"connect":{"client":"c1","version":"0.1.0","ping":25,"pong":true,'
        '"data":{"a":1},"subs":{"a":{"offset":1},"b\\"":{}}}}'
    )


@pytest.mark.parametrize(
    ("ping", "seconds"), [(25.0, 25), (24.5, 25), (0.2, 1), (1.0, 1), (1.000001, 2)]
)
def test_the_ping_of_a_connect_reply_is_in_whole_seconds(
    ping: float, seconds: int
) -> None:
    assert f'"ping":{seconds},' in replies.connect_reply(1, "c", "v", ping)


TOP = Position(5, "e")


@pytest.mark.parametrize(
    ("joined", "options", "text"),
    [
        (Joined(None, None), {}, "{}"),
        (
            Joined(None, None),
            {"data": RawJson("[1]")},
            '{"data":[1]}',
        ),
        (Joined(TOP, None), {}, "{}"),
        (
            Joined(TOP, None),
            {"positioned": True},
            '{"positioned":true,"epoch":"e","offset":5}',
        ),
        (
            Joined(Position(0, "e"), None),
            {"recoverable": True, "positioned": True},
            '{"recoverable":true,"positioned":true,"epoch":"e","offset":0}',
        ),
        (
            Joined(TOP, []),
            {"recoverable": True, "positioned": True, "asked": Position(5, "")},
            '{"recoverable":true,"positioned":true,"epoch":"e","offset":5,'
            '"was_recovering":true,"recovered":true}',
        ),
        (
            Joined(TOP, [Publication(4, RawJson("1")), Publication(5, RawJson("2"))]),
            {"recoverable": True, "positioned": True, "asked": Position(3, "e")},
            '{"recoverable":true,"positioned":true,"epoch":"e","offset":3,'
            '"was_recovering":true,"recovered":true,'
            '"publications":[{"data":1,"offset":4},{"data":2,"offset":5}]}',
        ),
        (
            Joined(TOP, None),
            {"recoverable": True, "positioned": True, "asked": Position(9, "x")},
            '{"recoverable":true,"positioned":true,"epoch":"e","offset":5,'
            '"was_recovering":true}',
        ),
    ],
)
def test_a_subscribe_result(joined: Joined, options: dict[str, Any], text: str) -> None:
    given = {"asked": None, "recoverable": False, "positioned": False, **options}
    assert replies.subscribe_result(joined, **given) == text
    assert replies.subscribe_reply(2, text) == f'{{"id":2,"subscribe":{text}}}'
    assert replies.subscribe_push('"ch"', text) == (
        f'{{"push":{{"channel":"ch","subscribe":{text}}}}}'
    )


def test_a_history_reply() -> None:
    found = [Publication(4, RawJson("1")), Publication(5, RawJson("{}"))]
    assert replies.history_reply(3, found, TOP) == (
        '{"id":3,"history":{"publications":[{"data":1,"offset":4},'
        '{"data":{},"offset":5}],"epoch":"e","offset":5}}'
    )
    assert replies.history_reply(3, [], Position(0, "e")) == (
        '{"id":3,"history":{"publications":[],"epoch":"e","offset":0}}'
    )


def test_presence_replies() -> None:
    clients = [("c1", RawJson('{"user":"","client":"c1"}')), ('c"2', RawJson("{}"))]
    assert replies.presence_reply(3, clients) == (
        '{"id":3,"presence":{"presence":{"c1":{"user":"","client":"c1"},"c\\"2":{}}}}'
    )
    assert replies.presence_reply(3, []) == '{"id":3,"presence":{"presence":{}}}'
    assert replies.presence_stats_reply(3, 0, 0) == (
        '{"id":3,"presence_stats":{"num_clients":0,"num_users":0}}'
    )


def test_rpc_replies() -> None:
    assert replies.rpc_reply(3, None) == '{"id":3,"rpc":{}}'
    assert replies.rpc_reply(3, RawJson("null")) == '{"id":3,"rpc":{"data":null}}'


# Pushes.


@pytest.mark.parametrize(
    ("publication", "body"),
    [
        (Publication(0, RawJson("1")), '{"data":1}'),
        (Publication(7, RawJson('{"a":1}')), '{"data":{"a":1},"offset":7}'),
        (
            Publication(
                2**53 - 1,
                RawJson("null"),
                RawJson('{"user":"u","client":"c"}'),
                RawJson('{"t":"1"}'),
            ),
            '{"data":null,"offset":9007199254740991,'
            '"info":{"user":"u","client":"c"},"tags":{"t":"1"}}',
        ),
    ],
)
def test_a_publication(publication: Publication, body: str) -> None:
    assert replies.publication_body(publication) == body
    assert replies.publication_push('"ch"', publication) == (
        f'{{"push":{{"channel":"ch","pub":{body}}}}}'
    )


def test_a_publication_is_encoded_once() -> None:
    publication = Publication(1, RawJson("1"))
    first = replies.publication_body(publication)
    assert replies.publication_body(publication) is first
    assert publication.body is first


def test_an_unsubscribe_push_has_what_python_reads_without_a_default() -> None:
    close = Unsubscribe(2500, "insufficient state")
    assert replies.unsubscribe_push('"ch"', close) == (
        '{"push":{"channel":"ch","unsubscribe":{"code":2500,'
        '"reason":"insufficient state"}}}'
    )


def test_who_comes_and_goes() -> None:
    info = RawJson('{"user":"u","client":"c"}')
    assert replies.join_push('"ch"', info) == (
        '{"push":{"channel":"ch","join":{"info":{"user":"u","client":"c"}}}}'
    )
    assert replies.leave_push('"ch"', info) == (
        '{"push":{"channel":"ch","leave":{"info":{"user":"u","client":"c"}}}}'
    )


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (ClientInfo(UserId(""), ClientId("c")), '{"user":"","client":"c"}'),
        (
            ClientInfo(UserId('u"'), ClientId("c"), RawJson("1"), RawJson("[2]")),
            '{"user":"u\\"","client":"c","conn_info":1,"chan_info":[2]}',
        ),
        (
            ClientInfo(UserId("u"), ClientId("c"), None, RawJson("2")),
            '{"user":"u","client":"c","chan_info":2}',
        ),
    ],
)
def test_client_info(info: ClientInfo, text: str) -> None:
    assert replies.client_info(info) == text


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_no_text_breaks_the_framing(separator: str) -> None:
    # Only \n separates messages, but readers may split at more.
    quoted = replies.quote(f"a{separator}\nb")
    assert "\n" not in quoted
    assert json.loads(quoted) == f"a{separator}\nb"

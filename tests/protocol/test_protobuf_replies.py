"""Replies and pushes in protobuf: what JSON clients are told, and not a byte more."""

from __future__ import annotations

import inspect
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _speedups import check
from service.core import errors
from service.core.errors import CodecError
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
from service.protocol.commands import PingRequest
from service.protocol.json import Json
from service.protocol.protobuf import Protobuf
from tests.protocol.public import messages, sent

CHANNEL = replies.quote('room "1" \\ é')
INFO = replies.client_info(
    ClientInfo(
        UserId("ann"), ClientId("c-1"), RawJson('{"name":"Ann"}'), RawJson("[1]")
    )
)
PUBLICATION = Publication(
    7, RawJson('{"text":"größer"}'), INFO, RawJson('{"a":"1","b \\"":"é"}')
)
JOINED = Joined(Position(9, "epoch"), [PUBLICATION, Publication(8, RawJson("null"))])
ALL = {
    "asked": Position(6, "epoch"),
    "recoverable": True,
    "positioned": True,
    "data": RawJson('{"d":1}'),
    "ttl": 60,
    "delta": False,
}
RESULT = replies.subscribe_result(JOINED, **ALL)

# Every function of `replies` that writes a message, called with all that it takes: what
# it learns to write has to be added here, and known to the table of messages.
WRITTEN: dict[str, dict[str, Any]] = {
    "empty_reply": {"command": 4, "method": "publish"},
    "error_reply": {"command": 4, "error": errors.INTERNAL},
    "connect_reply": {
        "command": 4,
        "client": "c-1",
        "version": "1.0",
        "ping": 25.0,
        "pong": True,
        "ttl": 2**31 - 1,
        "data": RawJson('{"hello":[1,2.50]}'),
        "subscriptions": [('room "1"', RESULT), ("other", "{}")],
    },
    "subscribe_reply": {"command": 4, "result": RESULT},
    "presence_reply": {"command": 4, "clients": [("c-1", INFO), ("c-2", "{}")]},
    "presence_stats_reply": {"command": 4, "clients": 3, "users": 2},
    "rpc_reply": {"command": 4, "data": RawJson('{"r":null}')},
    "refresh_reply": {"command": 4, "method": "sub_refresh", "ttl": 1},
    "history_reply": {
        "command": 4,
        "publications": [PUBLICATION],
        "top": Position(2**53 - 1, "epoch"),
    },
    "publication_push": {"channel": CHANNEL, "publication": PUBLICATION},
    "delta_push": {"channel": CHANNEL, "publication": PUBLICATION, "base": None},
    "unsubscribe_push": {"channel": CHANNEL, "close": errors.UNSUBSCRIBE_EXPIRED},
    "disconnect_push": {"close": errors.STALE},
    "subscribe_push": {
        "channel": CHANNEL,
        "result": '{"recoverable":true,"positioned":true,"epoch":"e","offset":9,'
        '"data":{"d":1}}',
    },
    "join_push": {"channel": CHANNEL, "info": INFO},
    "leave_push": {"channel": CHANNEL, "info": INFO},
}
LEAST: dict[str, dict[str, Any]] = {
    "connect_reply": {"command": 1, "client": "c", "version": "", "ping": 1.0},
    "presence_reply": {"command": 1, "clients": []},
    "presence_stats_reply": {"command": 1, "clients": 0, "users": 0},
    "rpc_reply": {"command": 1, "data": None},
    "refresh_reply": {"command": 1, "method": "refresh", "ttl": None},
    "subscribe_reply": {"command": 1, "result": "{}"},
    "history_reply": {"command": 1, "publications": [], "top": Position(0, "")},
    "publication_push": {
        "channel": '"ch"',
        "publication": Publication(0, RawJson("null")),
    },
}
# These write parts of messages.
PARTS = {"client_info", "delta_body", "error_body", "publication_body"}
PARTS |= {"info_of_user"}  # how a client_info begins, to search for
PARTS |= {"presence_result", "presence_stats_result", "subscribe_result"}


def encode(text: str) -> bytes:
    return Protobuf().encode(text)


def agrees(text: str) -> None:
    """Check that protobuf says what the text says, and is not longer."""
    encoded = encode(text)
    assert messages(encoded) == [sent(text)]
    assert len(encoded) <= len(text.encode())


def writers() -> dict[str, Callable[..., str]]:
    found = {}
    for name in replies.__all__:
        value = getattr(replies, name)
        if inspect.isfunction(value) and inspect.signature(value).return_annotation in (
            "str",
            "RawJson",
        ):
            found[name] = value
    return found


def test_every_writer_is_tried_with_all_that_it_takes() -> None:
    assert writers().keys() == WRITTEN.keys() | PARTS
    for name, arguments in WRITTEN.items():
        assert set(inspect.signature(writers()[name]).parameters) == set(arguments)
    options = inspect.signature(replies.subscribe_result).parameters
    assert set(options) == {"joined", *ALL}
    # An attribute that no text has yet is one that this does not see.
    assert set(Publication.__slots__) - {"body", "patch"} == {
        "offset",
        "data",
        "info",
        "tags",
        "time",
    }


@pytest.mark.parametrize("name", WRITTEN)
def test_all_that_is_written_in_json_is_in_protobuf(name: str) -> None:
    agrees(writers()[name](**WRITTEN[name]))


@pytest.mark.parametrize("name", LEAST)
def test_the_least_that_is_written_in_json_is_in_protobuf(name: str) -> None:
    agrees(writers()[name](**LEAST[name]))


@pytest.mark.parametrize(
    "error",
    [e for e in vars(errors).values() if isinstance(e, errors.ErrorReply)],
    ids=str,
)
def test_every_error(error: errors.ErrorReply) -> None:
    agrees(replies.error_reply(2**32 - 1, error))


@pytest.mark.parametrize(
    "method", ["publish", "unsubscribe", "subscribe", "refresh", "sub_refresh", "rpc"]
)
def test_an_empty_result_is_there(method: str) -> None:
    # An SDK looks for the result, and would fail without.
    ((reply),) = messages(encode(replies.empty_reply(3, method)))
    assert reply == {"id": 3, method: {}}


def test_the_bytes() -> None:
    assert encode(replies.PING) == b"\0"
    assert encode(replies.empty_reply(3, "publish")) == b"\x04\x08\x03\x42\x00"
    push = replies.publication_push('"ch"', Publication(5, RawJson('{"a":1}')))
    assert encode(push) == b'\x13"\x11\x12\x02ch"\x0b"\x07{"a":1}0\x05'


def test_a_long_message_has_a_long_length() -> None:
    for size in (100, 127, 128, 16_383, 16_384, 2_097_152):
        push = replies.publication_push(
            '"ch"', Publication(1, RawJson(f'"{"1" * size}"'))
        )
        agrees(push)


# Any text.

_text = st.text(max_size=12)
_plain = st.text(st.characters(codec="utf-8"), max_size=12)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | _plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_plain, inner),
    max_leaves=6,
)
_payload = st.builds(
    lambda value, **style: RawJson(check(json.dumps(value, **style))),
    _json,
    ensure_ascii=st.booleans(),
    separators=st.sampled_from([(",", ":"), (" , ", " : ")]),
)
_tags = st.dictionaries(_plain, _plain).map(lambda t: RawJson(json.dumps(t)))
_info = st.builds(
    lambda *of: replies.client_info(ClientInfo(*of)),
    _plain,
    _plain,
    st.none() | _payload,
    st.none() | _payload,
)
_publication = st.builds(
    Publication,
    st.integers(0, 2**53 - 1),
    _payload,
    st.none() | _info,
    st.none() | _tags,
)


@settings(max_examples=60)
@given(_plain, _publication)
def test_pushes_agree_with_json(channel: str, publication: Publication) -> None:
    agrees(replies.publication_push(replies.quote(channel), publication))


@settings(max_examples=60)
@given(
    st.integers(1, 2**32 - 1),
    st.lists(_publication, max_size=4),
    _plain,
    st.integers(0, 2**53 - 1),
    st.dictionaries(_plain, _info, max_size=3),
)
def test_replies_agree_with_json(
    number: int,
    publications: list[Publication],
    epoch: str,
    offset: int,
    clients: dict[str, RawJson],
) -> None:
    top = Position(offset, epoch)
    agrees(replies.history_reply(number, publications, top))
    agrees(replies.presence_reply(number, clients.items()))
    result = replies.subscribe_result(
        Joined(top, publications),
        asked=top,
        recoverable=True,
        positioned=False,
        data=RawJson("{}"),
    )
    agrees(replies.subscribe_reply(number, result))
    agrees(
        replies.connect_reply(
            number, "c", "v", 1.0, subscriptions=[(name, result) for name in clients]
        )
    )


# Halves of surrogate pairs: JSON can escape them, Unicode does not have them.


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (r'"\ud800"', r'"\ufffd"'),
        (r'"\uDFFF"', r'"\ufffd"'),
        (r'"\ud800\ud800"', r'"\ufffd\ufffd"'),
        (r'"\udc00\ud800"', r'"\ufffd\ufffd"'),
        (r'"\ud83d\ude00\ude00"', r'"\ud83d\ude00\ufffd"'),
        (r'"\ud800\ud83d\ude00"', r'"\ufffd\ud83d\ude00"'),
        (r'"\\ud800\ud800"', r'"\\ud800\ufffd"'),
        (r'"\\\ud800"', r'"\\\ufffd"'),
        (r'"\"\ud800\u00e9\n"', r'"\"\ufffd\u00e9\n"'),
        (r'{"\udbff":["\ud800x"]}', r'{"\ufffd":["\ufffdx"]}'),
        (r'"\\ud800"', r'"\\ud800"'),
        (r'"\ud83d\ude00"', r'"\ud83d\ude00"'),
    ],
)
def test_half_a_pair_in_a_payload_is_replaced(data: str, expected: str) -> None:
    text = check(data)  # a payload that may be published
    push = replies.publication_push('"ch"', Publication(1, RawJson(text)))
    encoded = encode(push)
    assert expected.encode() in encoded
    ((reply),) = messages(encoded)
    assert reply["push"]["pub"]["data"] == json.loads(expected)


@given(_text, _text)
def test_any_name_goes_out(channel: str, user: str) -> None:
    # From a hook or a token: a str can hold halves.
    info = replies.client_info(ClientInfo(UserId(user), ClientId("c")))
    ((reply),) = messages(encode(replies.join_push(replies.quote(channel), info)))
    mended = [
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        for text in (channel, user)
    ]
    assert reply["push"].get("channel", "") == mended[0]
    assert reply["push"]["join"]["info"].get("user", "") == mended[1]


@given(st.text(st.sampled_from('\\"ud8Dcf0a'), max_size=24))
def test_any_payload_that_may_be_published_goes_out(text: str) -> None:
    try:
        data = RawJson(check(f'["{text}"]'))
    except ValueError:
        return
    ((reply),) = messages(
        encode(replies.publication_push('"ch"', Publication(1, data)))
    )
    (value,) = json.loads(data)
    mended = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert reply["push"]["pub"]["data"] == [mended]


def test_the_deepest_payload_goes_out() -> None:
    data = RawJson(check("[" * 100 + "]" * 100))
    agrees(replies.history_reply(1, [Publication(1, data)], Position(1, "e")))


# Messages without a form in protobuf.


@pytest.mark.parametrize(
    "text",
    [
        '{"id":-1,"publish":{}}',
        '{"id":4294967296,"publish":{}}',
        '{"id":1,"error":{"code":1.5,"message":"m"}}',
        '{"id":1,"error":{"code":-1,"message":"m"}}',
        '{"id":1,"error":{"code":"1","message":"m"}}',
        '{"id":1,"connect":{"ttl":1.5}}',
        '{"id":1,"presence":{"presence":[]}}',
        '{"push":{"channel":null}}',
        "",
        "[]",
        "{",
        '{"id":1}{"id":2}',
    ],
)
def test_what_protobuf_cannot_say_is_an_error(text: str) -> None:
    codec = Protobuf()
    ping = codec.encode(replies.PING)
    with pytest.raises(CodecError):
        codec.encode(text)
    assert codec.encode(replies.PING) == ping  # and nothing is remembered of it


# Once for all.


def test_one_text_is_worked_on_once() -> None:
    codec = Protobuf()
    text = replies.publication_push('"ch"', PUBLICATION)
    first = codec.encode(text)
    assert all(codec.encode(text) is first for _ in range(1000))
    other = replies.publication_push('"ch"', Publication(8, RawJson("1")))
    assert codec.encode(other) is not first
    assert codec.encode(text) == first


def test_several_lines_are_as_many_messages() -> None:
    codec = Protobuf()
    lines = [replies.join_push(CHANNEL, INFO), replies.leave_push(CHANNEL, INFO)]
    text = "\n".join(lines)
    data = codec.encode(text)
    assert data == b"".join([encode(line) for line in lines])
    assert codec.encode(text) is data  # worked on once
    assert Json.encode(text).split("\n") == lines


def test_those_who_recover_share_the_work_and_get_each_their_own() -> None:
    codec = Protobuf()
    publications = [
        Publication(number, RawJson(json.dumps({"n": number, "x": "ö" * 50})), INFO)
        for number in range(1, 301)
    ]
    for since in (0, 100, 299, 0):
        part = publications[since:]
        top = Position(300, "e")
        text = replies.history_reply(since + 1, part, top)
        assert messages(codec.encode(text)) == [sent(text)]
        push = replies.publication_push('"ch"', part[-1])
        assert messages(codec.encode(push)) == [sent(push)]


def test_what_is_kept_for_the_next_reader_is_bounded() -> None:
    codec = Protobuf()
    tracemalloc.start()
    try:
        for number in range(200):
            data = RawJson(f'"{number}{"x" * 100_000}"')
            codec.encode(replies.publication_push('"ch"', Publication(number, data)))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 3 * 1024 * 1024  # of 40 MB, in both forms


def test_an_equal_text_is_not_taken_for_another() -> None:
    codec = Protobuf()
    texts = [replies.empty_reply(number, "publish") for number in (1, 2, 1, 0)]
    assert [messages(codec.encode(text)) for text in texts] == [
        [{"id": 1, "publish": {}}],
        [{"id": 2, "publish": {}}],
        [{"id": 1, "publish": {}}],
        [{"publish": {}}],
    ]


def test_a_frame_is_its_messages_after_each_other() -> None:
    codec = Protobuf()
    texts = [replies.PING, replies.empty_reply(1, "publish"), replies.PING]
    encoded = [codec.encode(text) for text in texts]
    data = codec.join(encoded)
    assert len(data) == sum(codec.size(message) for message in encoded)
    assert codec.gap == 0
    assert messages(data) == [{}, {"id": 1, "publish": {}}, {}]


def test_json_goes_through_as_it_is() -> None:
    codec = Json()
    text = replies.publication_push(CHANNEL, PUBLICATION)
    assert codec.encode(text) is text
    assert codec.size(text) == len(text.encode())
    assert codec.join([text, replies.PING]) == f"{text}\n{{}}"
    assert codec.gap == 1
    [(number, method, request)] = codec.decode('{"id":1,"ping":{}}')
    assert (number, method, type(request)) == (1, "ping", PingRequest)

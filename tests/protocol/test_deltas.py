"""Publications as subscriptions that take deltas are sent them, in both forms."""

from __future__ import annotations

import json
from typing import Any

import pytest
from centrifuge.protocol import client_pb2
from hypothesis import given
from hypothesis import strategies as st

from _speedups import check
from service.core.model import Joined, Position, Publication, RawJson
from service.protocol import replies
from service.protocol.protobuf import Protobuf
from tests.speedups.fossil import applied

LONG = "語りえぬもの, und \\ud800 \\u00e9 \\n " * 5


def payload(n: int) -> RawJson:
    return RawJson(check(f'{{ "n":{n},"text":"{LONG}"}}'))


def in_json(push: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(push)["push"]["pub"]
    return body


def in_protobuf(push: str) -> Any:
    encoded = Protobuf().encode(push)
    at = 1 if encoded[0] < 0x80 else 2
    return client_pb2.Reply.FromString(encoded[at:]).push.pub


def test_a_payload_in_full() -> None:
    text = replies.delta_body(Publication(7, RawJson('{"a":"b"}')), None)
    assert text == '{"data":"{\\"a\\":\\"b\\"}","offset":7,"delta":false}'


def test_a_payload_as_the_difference() -> None:
    publication = Publication(8, payload(2), RawJson('{"user":""}'), RawJson("{}"))
    body = json.loads(replies.delta_body(publication, payload(1)))
    assert body.keys() == {"data", "offset", "info", "tags", "delta"}
    assert body["delta"] is True
    assert body["data"].startswith(f"{_digits(len(payload(2).encode()))}\n")
    made = applied(payload(1).encode(), body["data"].encode())
    assert made.decode() == payload(2)


def _digits(value: int) -> str:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~"
    return (_digits(value // 64) if value > 63 else "") + digits[value % 64]


@pytest.mark.parametrize("data", ["1", "null", '""', '"something else altogether"'])
def test_a_difference_that_is_not_shorter_is_the_payload(data: str) -> None:
    publication = Publication(8, RawJson(data))
    body = json.loads(replies.delta_body(publication, RawJson("2")))
    assert body == {"data": data, "offset": 8, "delta": False}


def test_a_difference_is_made_once_for_a_payload_and_again_for_another() -> None:
    publication = Publication(9, payload(3))
    first = replies.delta_body(publication, payload(2))
    assert publication.patch is not None
    assert replies.delta_body(publication, RawJson("".join([*payload(2)]))) is first
    other = json.loads(replies.delta_body(publication, payload(1) + RawJson(" ")))
    made = applied(f"{payload(1)} ".encode(), other["data"].encode())
    assert made.decode() == payload(3)


def test_in_protobuf_the_bytes_are_those_of_the_text() -> None:
    # Half a pair stays as it is, unlike in a plain subscription: the client puts
    # together bytes, which have to be those that the difference was made of.
    full = replies.delta_push('"ch"', Publication(1, payload(1)), None)
    patch = replies.delta_push('"ch"', Publication(2, payload(2)), payload(1))
    first, second = in_protobuf(full), in_protobuf(patch)
    assert (first.data, first.offset, first.delta) == (payload(1).encode(), 1, False)
    assert (second.offset, second.delta) == (2, True)
    assert second.data.decode() == in_json(patch)["data"]
    assert applied(first.data, second.data) == payload(2).encode()


def test_a_reply_begins_in_full_and_goes_on_from_there() -> None:
    publications = [Publication(n, payload(n)) for n in range(4, 8)]
    publications.insert(2, Publication(9, RawJson("1")))
    result = replies.subscribe_result(
        Joined(Position(9, "e"), publications),
        asked=Position(3, "e"),
        recoverable=True,
        positioned=True,
        delta=True,
    )
    reply = replies.subscribe_reply(1, result)
    told = json.loads(reply)["subscribe"]
    assert told["delta"] is True
    assert [p["delta"] for p in told["publications"]] == [
        False,
        True,
        False,
        False,
        True,
    ]
    message = client_pb2.Reply.FromString(Protobuf().encode(reply)[2:])
    held = raw = b""
    for publication, body, other in zip(
        publications, told["publications"], message.subscribe.publications, strict=True
    ):
        data = body["data"].encode()
        held = applied(held, data) if body["delta"] else data
        raw = applied(raw, other.data) if other.delta else other.data
        assert held.decode() == raw.decode() == publication.data


def test_a_client_that_takes_no_deltas_is_told_nothing_of_them() -> None:
    joined = Joined(Position(1, "e"), [Publication(1, payload(1))])
    result = json.loads(
        replies.subscribe_result(
            joined, asked=Position(0, "e"), recoverable=True, positioned=True
        )
    )
    assert "delta" not in result
    assert result["publications"] == [{"data": json.loads(payload(1)), "offset": 1}]


def test_the_three_texts_of_a_publication_are_encoded_once_each() -> None:
    codec = Protobuf()
    publication = Publication(2, payload(2))
    texts = [
        replies.publication_push('"ch"', publication),
        replies.delta_push('"ch"', publication, payload(1)),
        replies.delta_push('"ch"', publication, None),
    ]
    first = [codec.encode(text) for text in texts]
    for n in (0, 2, 1, 1, 0, 2, 0):
        assert codec.encode(texts[n]) is first[n]


_words = st.lists(st.text(max_size=9), max_size=30)


@given(_words, _words, st.booleans())
def test_any_payload_comes_out_of_both_forms(
    old: list[str], new: list[str], ascii_only: bool
) -> None:
    texts = [
        RawJson(check(json.dumps(words, ensure_ascii=ascii_only)))
        for words in (old, [*old, *new])
    ]
    push = replies.delta_push('"ch"', Publication(2, texts[1]), texts[0])
    body, message = in_json(push), in_protobuf(push)
    assert body["delta"] == message.delta
    assert body["data"].encode() == message.data
    made = applied(texts[0].encode(), message.data) if message.delta else message.data
    assert made.decode() == texts[1]

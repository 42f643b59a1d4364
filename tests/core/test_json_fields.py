"""Payload and override fields of tokens, hook answers and API requests."""

from __future__ import annotations

import base64

import msgspec
import pytest

from service.core.errors import ReplyError
from service.core.json_fields import (
    ServerSubscription,
    optional_payload_of,
    override_of,
    payload_of,
)
from service.core.model import NO_OVERRIDE, Override


def fields(text: str) -> ServerSubscription:
    return msgspec.json.decode(text, type=ServerSubscription)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def b64data(text: str, rest: str = "") -> str:
    return f'{{{rest}"b64data":"{encoded(text)}"}}'


@pytest.mark.parametrize(
    ("text", "payload", "optional"),
    [
        ("{}", None, None),
        ('{"data":{"a":[1, 2]}}', '{"a":[1, 2]}', '{"a":[1, 2]}'),
        ('{"data":null}', "null", None),
        (b64data("[1]"), "[1]", "[1]"),
        (b64data("null"), "null", None),
        (b64data("2", '"data":1,'), "2", "2"),
        ('{"data":1,"b64data":""}', "1", "1"),
        (b64data("[1,\n2]"), "[1,2]", "[1,2]"),
    ],
)
def test_payloads(text: str, payload: str | None, optional: str | None) -> None:
    found = fields(text)
    assert payload_of(found.data, found.b64data) == payload
    assert optional_payload_of(found.data, found.b64data) == optional


@pytest.mark.parametrize("bad", ["!", "AAAA", "é", encoded("{"), encoded("{}{}")])
def test_base64_that_does_not_hold_json(bad: str) -> None:
    with pytest.raises(ReplyError, match="bad request"):
        payload_of(msgspec.UNSET, bad)


def test_the_limit_is_in_bytes() -> None:
    for found in (fields('{"data":"é"}'), fields(b64data('"é"'))):
        assert payload_of(found.data, found.b64data, 4) == '"é"'
        with pytest.raises(ReplyError, match="bad request"):
            payload_of(found.data, found.b64data, 3)


def test_overrides() -> None:
    assert override_of(None) is NO_OVERRIDE
    text = '{"override":{"presence":{"value":true},"join_leave":{},"x":1}}'
    found = override_of(fields(text).override)
    assert found == Override(presence=True, join_leave=False)

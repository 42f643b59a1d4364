"""Commands in protobuf: the same as in JSON, and nothing hostile gets further."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.errors import CodecError, ReplyError
from service.core.model import Channel
from service.protocol.commands import (
    Command as Parsed,
)
from service.protocol.commands import (
    Malformed,
    PingRequest,
    Pong,
    PublishRequest,
    SendRequest,
    UnsubscribeRequest,
)
from service.protocol.json import Json
from service.protocol.protobuf import Protobuf
from tests.protocol.mutants import commands_like, decoded_or_refused
from tests.protocol.public import Command, commands, frame

COMMANDS: dict[str, dict[str, Any]] = {
    "connect": {
        "token": "t",
        "data": {"a": [1, None]},
        "subs": {
            "ch": {"recover": True, "epoch": "e", "offset": 2**53 - 1},
            'quoted " and \\ é': {"channel": "x", "token": "s"},
        },
        "name": "js",
        "version": "1.2",
        "headers": {"X-A": "1", "": "empty"},
    },
    "subscribe": {
        "channel": "ch",
        "token": "t",
        "recover": True,
        "epoch": "e",
        "offset": 7,
        "data": "€",
        "positioned": True,
        "recoverable": True,
        "join_leave": True,
        "delta": "fossil",
        "flag": 3,
    },
    "unsubscribe": {"channel": "ch"},
    "publish": {"channel": "ch", "data": {"text": "größer 😀"}},
    "presence": {"channel": "ch"},
    "presence_stats": {"channel": "ch"},
    "history": {
        "channel": "ch",
        "limit": -1,
        "since": {"offset": 5, "epoch": "e"},
        "reverse": True,
    },
    "ping": {},
    "send": {"data": [1]},
    "rpc": {"method": "m", "data": None},
    "refresh": {"token": "t"},
    "sub_refresh": {"channel": "ch", "token": "t"},
}


decode = Protobuf.decode


def in_json(*objects: dict[str, Any]) -> list[Parsed]:
    return Json.decode("\n".join(json.dumps(one) for one in objects))


def parsed(command: Parsed) -> tuple[int, str, Any]:
    """Payloads parsed: two texts of one value are equal."""
    number, method, request = command
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    if isinstance(fields.get("data"), str):
        fields["data"] = json.loads(fields["data"])
    if isinstance(request, Malformed):
        fields["error"] = repr(request.error)
    return number, method, (type(request), fields)


def refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode(data)


@pytest.mark.parametrize("method", COMMANDS)
def test_a_command_is_what_it_is_in_json(method: str) -> None:
    command = {"id": 2**32 - 1, method: COMMANDS[method]}
    if method == "rpc":
        # A payload of null, which is not one that is absent.
        encoded = frame(Command(id=2**32 - 1, rpc={"method": "m", "data": b"null"}))
    else:
        encoded = commands(command)
    (ours,) = decode(encoded)
    (theirs,) = in_json(command)
    assert parsed(ours) == parsed(theirs)


def test_every_method_of_the_schema_is_there() -> None:
    assert {field.name for field in Command.DESCRIPTOR.fields} == {"id", *COMMANDS}


_text = st.text(st.characters(codec="utf-8"), max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner),
    max_leaves=8,
)
_set = st.just(True)
_offset = st.integers(1, 2**53 - 1)
_name = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
_of = {
    "publish": {"channel": _name, "data": _json.filter(lambda v: v is not None)},
    "subscribe": {
        "channel": _name,
        "token": _name,
        "recover": _set,
        "epoch": _name,
        "offset": _offset,
        "flag": st.integers(-(2**63), 2**63 - 1).filter(bool),
    },
    "history": {
        "limit": st.integers(-(2**31), 2**31 - 1).filter(bool),
        "since": st.fixed_dictionaries({}, optional={"offset": _offset}),
        "reverse": _set,
    },
    "connect": {
        "name": _name,
        "headers": st.dictionaries(_text, _text, min_size=1, max_size=3),
        "subs": st.dictionaries(
            _text,
            st.fixed_dictionaries({}, optional={"recover": _set, "epoch": _name}),
            min_size=1,
            max_size=3,
        ),
    },
}


@given(
    st.lists(
        st.tuples(
            st.integers(1, 2**32 - 1),
            st.sampled_from(sorted(_of)).flatmap(
                lambda method: st.tuples(
                    st.just(method),
                    st.fixed_dictionaries({}, optional=_of[method]),
                )
            ),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_frames_agree_with_json(rows: list[Any]) -> None:
    objects = [{"id": number, method: fields} for number, (method, fields) in rows]
    ours, theirs = decode(commands(*objects)), in_json(*objects)
    assert [parsed(one) for one in ours] == [parsed(one) for one in theirs]


def test_a_message_of_no_bytes_is_a_pong() -> None:
    assert decode(b"\0") == Json.decode("{}") == [(0, "", Pong())]
    mixed = b"\0" + commands({"id": 1, "ping": {}}) + b"\0"
    assert decode(mixed) == [
        (0, "", Pong()),
        (1, "ping", PingRequest()),
        (0, "", Pong()),
    ]


def test_what_is_zero_is_absent() -> None:
    empty = frame(Command(id=0, publish={"channel": "", "data": b""}))
    [ours] = decode(empty)
    [theirs] = in_json({"publish": {}})
    assert parsed(ours) == parsed(theirs)


def test_unknown_fields_and_methods_are_skipped() -> None:
    # Field 63 of every wire type, groups included.
    unknown = (
        b"\xf8\x03\x05"
        b"\xf9\x03" + b"8" * 8 + b"\xfa\x03\x02ab"
        b"\xfb\x03\x08\x01\xfc\x03"
        b"\xfd\x03" + b"4" * 4
    )
    body = b"\x08\x05" + unknown + b"\x32" + bytes([4 + len(unknown)])
    body += b"\x0a\x02ch" + unknown
    assert decode(frame(body)) == [
        (5, "unsubscribe", UnsubscribeRequest(Channel("ch")))
    ]
    ((number, method, request),) = decode(frame(b"\x08\x05" + unknown))
    assert (number, method) == (5, "")
    assert isinstance(request, Malformed)  # it has an id, so it is no pong


def test_a_tags_filter_is_seen_and_not_read() -> None:
    # Deep inside, one in the other, as deep as a frame can be.
    inner = b""
    while len(inner) < 20_000:
        inner = b"\x32" + frame(inner)
    subscribe = b"\x0a\x02ch\x6a" + frame(inner)
    body = b"\x08\x01\x2a" + frame(subscribe)
    ((number, method, request),) = decode(frame(body))
    assert (number, method) == (1, "subscribe")
    assert isinstance(request, Malformed) and isinstance(request.error, ReplyError)
    assert request.error.error.code == 107


# Payloads.

NOT_JSON = {
    "bytes": b"\x00\xff\xfe",
    "text": b"hello",
    "half": b'{"a":',
    "two": b"1 2",
    "latin-1": b'"\xe9"',
    "surrogates": b'"\xed\xa0\x80"',
    "mark": b"\xef\xbb\xbf{}",
    "nan": b"NaN",
    "deep": b"[" * 101 + b"]" * 101,
    "spaces": b"  ",
}


@pytest.mark.parametrize("method", ["subscribe", "publish", "rpc"])
@pytest.mark.parametrize("data", NOT_JSON.values(), ids=NOT_JSON)
def test_a_payload_that_is_not_json_is_107(method: str, data: bytes) -> None:
    channel = {} if method == "rpc" else {"channel": "ch"}
    encoded = frame(Command(id=3, **{method: {**channel, "data": data}}))
    ((number, name, request),) = decode(encoded)
    assert (number, name) == (3, method)
    assert isinstance(request, Malformed) and isinstance(request.error, ReplyError)
    assert request.error.error.code == 107


def test_nobody_reads_the_payload_of_a_send() -> None:
    # It is refused, whatever it holds.
    encoded = frame(Command(id=3, send={"data": b"hello"}))
    assert decode(encoded) == [(3, "send", SendRequest())]


def test_a_connect_with_a_payload_that_is_not_json_is_malformed() -> None:
    # As any other malformed first command: there is no connection to go on with.
    refused(frame(Command(id=1, connect={"data": b"hello"})))


def test_a_payload_comes_as_its_text_without_newlines() -> None:
    for data, text in ((b' {"a" :\n1}\r\n', '{"a" :1}\r'), (b"null", "null")):
        command = Command(id=1, publish={"channel": "ch", "data": data})
        ((_, _, request),) = decode(frame(command))
        assert isinstance(request, PublishRequest)
        assert request.data == text.strip()


# Hostile frames.

MALFORMED = {
    "nothing": b"",
    "half a length": b"\x80",
    "length without an end": b"\x80" * 9,
    "length of ten bytes without an end": b"\x80" * 10,
    "length of eleven bytes": b"\x80" * 10 + b"\x01",
    "length of a thousand bytes": b"\xff" * 1000,
    "one byte too few": b"\x02\x08",
    "length beyond the frame": b"\x7f\x08\x01",
    "length of 2**32": b"\x80\x80\x80\x80\x10\x08\x01",
    "length of 2**63": b"\x80" * 9 + b"\x01" + b"\x08\x01",
    "length of 2**64 - 1": b"\xff" * 9 + b"\x01" + b"\x08\x01",
    "length of 2**70 - 1": b"\xff" * 9 + b"\x7f" + b"\x08\x01",
    "a good command, then half": b"\x02\x08\x01\x05\x08",
    "field number 0": frame(b"\x00\x01"),
    "wire type 6": frame(b"\x0e"),
    "wire type 7": frame(b"\x0f"),
    "half a tag": frame(b"\x80"),
    "half a varint": frame(b"\x08\x80"),
    "varint of eleven bytes": frame(b"\x08" + b"\xff" * 10 + b"\x01"),
    "message longer than its frame": frame(b"\x08\x01\x3a\x7f\x0a"),
    "message of 2**31 bytes": frame(b"\x3a\x80\x80\x80\x80\x08"),
    "string longer than its message": frame(b"\x3a\x02\x0a\x05"),
    "string that is not UTF-8": frame(b"\x3a\x03\x0a\x01\xff"),
    "string with a surrogate": frame(b"\x3a\x05\x0a\x03\xed\xa0\x80"),
    "map key that is not UTF-8": frame(b"\x22\x05\x1a\x03\x0a\x01\xff"),
    "group without an end": frame(b"\x0b"),
    "end of no group": frame(b"\x0c"),
    "groups without an end": frame(b"\x0b" * 60_000),
    "groups inside each other": frame(b"\x0b" * 30_000 + b"\x0c" * 30_000),
    "two methods": frame(Command(id=1, publish={}, rpc={})),
    "all methods": commands({"id": 1, **{method: {} for method in COMMANDS}}),
    "JSON": b'{"id":1,"connect":{}}',
    "4097 pongs": b"\0" * 4097,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_frame_is_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_command_spoils_its_whole_frame(data: bytes) -> None:
    if data:
        refused(commands({"id": 1, "connect": {}}) + data)


def test_every_cut_of_a_frame_is_refused() -> None:
    encoded = frame(Command(id=300, publish={"channel": "ch", "data": b'{"a":1}'}))
    for size in range(len(encoded)):
        refused(encoded[:size])


def test_as_many_commands_as_json_could_have() -> None:
    assert len(decode(b"\0" * 4096)) == 4096
    # The shortest with an id that JSON has, in 64 KiB.
    assert 64 * 1024 // len('{"id":1,"rpc":{}}\n') < 4096


def test_numbers_that_json_clients_could_not_send_are_malformed() -> None:
    ch: dict[str, Any] = {"channel": "ch"}
    for command, key in (
        (
            Command(id=1, subscribe={**ch, "recover": True, "offset": 2**64 - 1}),
            "offset",
        ),
        (Command(id=1, subscribe={**ch, "flag": -1}), "flag"),
        (Command(id=1, history={**ch, "limit": -2}), "limit"),
        (Command(id=1, history={**ch, "since": {"offset": 2**53}}), "offset"),
    ):
        ((_, _, request),) = decode(frame(command))
        assert isinstance(request, Malformed)
        assert isinstance(request.error, CodecError)
        assert key in str(request.error)


def test_an_id_keeps_its_32_bits() -> None:
    # As every implementation reads a uint32: what is above is cut off.
    assert decode(frame(b"\x08" + b"\xff" * 9 + b"\x01\x5a\x00")) == [
        (2**32 - 1, "ping", PingRequest())
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 9 + b"\x01" + b"x" * 100,
        frame(b"\x3a\xff\xff\xff\xff\x07" + b"x" * 100),
        frame(b"\x3a" + frame(b"\x12\xff\xff\xff\xff\x07" + b"x" * 100)),
        b"\x82\x80\x80\x80\x08" + b"\x08\x01",
    ],
    ids=["length", "message", "payload", "2 GiB"],
)
def test_nothing_is_allocated_for_what_is_not_there(data: bytes) -> None:
    refused(data)  # what is kept for the first of its kind is there now
    tracemalloc.start()
    try:
        refused(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


SEED = 20261123


def test_mutated_frames_are_commands_or_refused() -> None:
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    outcomes = [decoded_or_refused(data) for data in commands_like(rng, 20_000)]
    assert 4_000 < sum(outcomes) < 16_000  # both happen


def test_the_interpreted_side_of_the_library_lets_nothing_through_either() -> None:
    # It is used where there is no compiled one, and raises other exceptions.
    command = [sys.executable, "-m", "tests.protocol.mutants", str(SEED), "2000"]
    out = subprocess.run(
        command,
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    kind, decoded, count = out.stdout.split()
    assert (kind, count) == ("python", "2000")
    assert 400 < int(decoded) < 1600  # of a few, the two sides think differently


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_mutated_frames_at_length() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    for data in commands_like(random.Random(seed), 2_000_000):
        decoded_or_refused(data)

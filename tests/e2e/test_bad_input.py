"""Bad input on a real socket: each gets its documented error or close, nobody else
notices, and the server is afterwards what it was before.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import framings, server_with
from tests.harness.gateway import GatewayServer
from tests.harness.process import stopped
from tests.harness.raw import BINARY, CONTINUATION, PING, TEXT, Closed, RawClient
from tests.harness.server import Server

framing = framings()

KiB = 1024

NAMESPACES = json.dumps(
    [
        {"name": "plain"},
        {"name": "kept", "history_size": 10, "history_ttl": 60},
        {"name": "numbers", "channel_regex": "[0-9]+"},
    ]
)


server = server_with({"STEADWIRE_CHANNELS_NAMESPACES": NAMESPACES})


async def settled(server: Server, descriptors: int, within: float = 30.0) -> None:
    """Wait until the server has no more descriptors open than before."""
    deadline = time.monotonic() + within
    while server.descriptors() > descriptors:
        assert time.monotonic() < deadline, (server.descriptors(), descriptors)
        await asyncio.sleep(0.02)


class Watched:
    """Another client, which must not be affected."""

    def __init__(self, client: RawClient, channel: str) -> None:
        self.client = client
        self.channel = channel
        self.expected = 0

    async def check(self) -> None:
        """Publish and receive: in order, nothing missing, nothing else."""
        for _ in range(3):
            self.expected += 1
            assert await self.client.publish(self.channel, self.expected) == {}
        found = await self.client.publications(self.channel, 3)
        first = self.expected - 2
        assert [p["offset"] for p in found] == [first, first + 1, first + 2]
        assert [p["data"] for p in found] == [first, first + 1, first + 2]
        assert not self.client.pushes


@pytest.fixture(autouse=True)
async def bystander(server: Server, channel: str) -> AsyncIterator[Watched]:
    """Hold the server to what every test of this module is about."""
    before = server.descriptors()
    watched = Watched(await server.raw(), f"{channel}-bystander")
    await watched.client.subscribe(watched.channel)
    await watched.check()
    yield watched
    await watched.check()
    watched.client.tcp.close()
    assert "Traceback" not in server.output()
    if isinstance(server, GatewayServer):
        return  # it holds no sockets, and counts none
    await settled(server, before)
    async with await server.raw() as fresh:
        await fresh.subscribe("fresh")
        assert await fresh.publish("fresh", 1) == {}
        await fresh.publications("fresh", 1)
    await settled(server, before)
    # Its maps: connections, channels, and the subscribers of each.
    async with server.api() as api, asyncio.timeout(30.0):
        while await counts(api) != [0, 0, 0, 0]:
            await asyncio.sleep(0.02)
    await settled(server, before)
    assert "task failed" not in server.output()


async def counts(api: Api) -> list[int]:
    """Return how many clients, users, subscriptions and channels there are."""
    [node] = (await api.call("info", {}))["nodes"]
    return [node[f"num_{what}"] for what in ("clients", "users", "subs", "channels")]


async def close_of(server: Server, *frames: str, connected: bool = True) -> Closed:
    """Return how a connection ends that sends *frames*."""
    client = await server.raw(connected=connected)
    for frame in frames:
        await client.send_text(frame)
    end = await client.closed()
    client.tcp.close()
    return end


async def refused(client: RawClient, **command: Any) -> dict[str, Any]:
    """Return the error of a command, after which the connection still serves."""
    reply = await client.request(**command)
    error: dict[str, Any] = reply["error"]
    assert await client.request(unsubscribe={"channel": "x"}) == {
        "id": reply["id"] + 1,
        "unsubscribe": {},
    }
    return error


def bad_request(end: Closed) -> None:
    assert (end.code, end.reason) == (3501, "bad request")


# Frames that are not commands.

NO_COMMANDS = {
    "empty frame": "",
    "newline": "\n",
    "spaces": "   ",
    "word": "hello",
    "number": "5",
    "string": '"connect"',
    "null": "null",
    "array": '[{"id":9,"rpc":{}}]',
    "half an object": '{"id":9,"rpc":{',
    "single quotes": "{'id':9,'rpc':{}}",
    "trailing comma": '{"id":9,"rpc":{},}',
    "comment": '{"id":9,"rpc":{}}//',
    "NaN": '{"id":9,"publish":{"channel":"ch","data":NaN}}',
    "Infinity": '{"id":9,"publish":{"channel":"ch","data":Infinity}}',
    "bad escape": '{"id":9,"publish":{"channel":"ch","data":"\\x"}}',
    "control character": '{"id":9,"publish":{"channel":"ch","data":"\x01"}}',
    "byte order mark": '\ufeff{"id":9,"rpc":{}}',
    "leading zero": '{"id":09,"rpc":{}}',
    "blank line": '{"id":9,"rpc":{}}\n\n{"id":10,"rpc":{}}',
    "blank line with a space": '{"id":9,"rpc":{}}\n \n{"id":10,"rpc":{}}',
    "two blank lines at the end": '{"id":9,"rpc":{}}\n\n',
    "two on a line": '{"id":9,"rpc":{}}{"id":10,"rpc":{}}',
    "object over two lines": '{"id":9,\n"rpc":{}',
    "two methods": '{"id":9,"rpc":{},"history":{"channel":"ch"}}',
    "id twice": '{"id":9,"id":10,"rpc":{}}',
    "field twice": '{"id":9,"history":{"channel":"a","channel":"b"}}',
    "id as text": '{"id":"9","rpc":{}}',
    "id with a fraction": '{"id":9.5,"rpc":{}}',
    "negative id": '{"id":-9,"rpc":{}}',
    "id of 33 bits": '{"id":4294967296,"rpc":{}}',
    "id true": '{"id":true,"rpc":{}}',
    "parameters as array": '{"id":9,"rpc":[]}',
    "parameters null": '{"id":9,"rpc":null}',
    "parameters as text": '{"id":9,"rpc":"x"}',
    "the good one first": '{"id":9,"unsubscribe":{"channel":"ch"}}\nnonsense',
    "nesting of 101": '{"id":9,"publish":{"channel":"ch","data":%s}}'
    % ("[" * 99 + "]" * 99),
    "nesting of 10000": '{"id":9,"publish":{"channel":"ch","data":%s}}'
    % ("[" * 10_000 + "]" * 10_000),
    "nesting without an end": "[" * 30_000,
    "open objects without an end": '{"a":' * 6_000,
    "lone surrogate in a channel": '{"id":9,"subscribe":{"channel":"\\ud800"}}',
    "integer of 5000 digits": '{"id":9,"history":{"channel":"ch","limit":%s}}'
    % ("9" * 5000),
    "number out of range": '{"id":9,"history":{"channel":"ch","limit":1e999}}',
}


@pytest.mark.requirement("B9", "B113", "B118")
@pytest.mark.parametrize("frame", NO_COMMANDS.values(), ids=NO_COMMANDS.keys())
async def test_a_frame_that_is_no_command_closes(server: Server, frame: str) -> None:
    bad_request(await close_of(server, frame))


@pytest.mark.parametrize("name", ["empty frame", "word", "array", "blank line"])
async def test_a_frame_that_is_no_command_closes_before_connect_too(
    server: Server, name: str
) -> None:
    bad_request(await close_of(server, NO_COMMANDS[name], connected=False))


# Commands that are malformed.

MALFORMED: list[dict[str, Any]] = [
    {"id": 9, "nonsense": {}},
    {"id": 9, "Subscribe": {"channel": "ch"}},
    {"id": 9},
    {"rpc": {}},
    {"id": 9, "subscribe": {"channel": 5}},
    {"id": 9, "subscribe": {"channel": None}},
    {"id": 9, "subscribe": {"channel": ["ch"]}},
    {"id": 9, "subscribe": {"channel": "ch", "recover": "yes"}},
    {"id": 9, "subscribe": {"channel": "ch", "recover": True, "epoch": 5}},
    {"id": 9, "subscribe": {"channel": "ch", "recover": True, "offset": 2**53}},
    {"id": 9, "subscribe": {"channel": "ch", "recover": True, "offset": 2**64}},
    {"id": 9, "subscribe": {"channel": "ch", "recover": True, "offset": -1}},
    {"id": 9, "subscribe": {"channel": "ch", "recover": True, "offset": 0.5}},
    {"id": 9, "subscribe": {"channel": "ch", "flag": -1}},
    {"id": 9, "subscribe": {}},
    {"id": 9, "unsubscribe": {}},
    {"id": 9, "publish": {"channel": "ch"}},
    {"id": 9, "publish": {"data": 1}},
    {"id": 9, "history": {}},
    {"id": 9, "history": {"channel": "ch", "limit": -2}},
    {"id": 9, "history": {"channel": "ch", "limit": "all"}},
    {"id": 9, "history": {"channel": "ch", "since": {"offset": 2**53}}},
    {"id": 9, "history": {"channel": "ch", "since": "1"}},
    {"id": 9, "presence": {}},
    {"id": 9, "presence_stats": {"channel": True}},
    {"id": 9, "rpc": {"method": 5}},
    {"id": 9, "connect": {}},  # a second one
]


@pytest.mark.requirement("R36", "B120")
@pytest.mark.parametrize("command", MALFORMED, ids=str)
async def test_a_malformed_command_closes(
    server: Server, command: dict[str, Any]
) -> None:
    bad_request(await close_of(server, json.dumps(command)))


@pytest.mark.requirement("L6")
@pytest.mark.parametrize(
    "command",
    [
        {"id": 1, "subscribe": {"channel": "ch"}},
        {"id": 1, "publish": {"channel": "ch", "data": 1}},
        {"id": 1, "rpc": {}},
        {"id": 1, "history": {"channel": "ch"}},
        {"id": 1, "nonsense": {}},
        {"send": {"data": 1}},
        {"connect": {}},
        {"id": 1, "connect": {"token": 5}},
        {"id": 1, "connect": {"subs": []}},
    ],
    ids=str,
)
async def test_anything_else_than_connect_closes_first(
    server: Server, command: dict[str, Any]
) -> None:
    bad_request(await close_of(server, json.dumps(command), connected=False))


@pytest.mark.requirement("R36", "L6")
@pytest.mark.parametrize("connected", [True, False])
async def test_a_pong_without_a_ping_closes(server: Server, connected: bool) -> None:
    bad_request(await close_of(server, "{}", connected=connected))


async def test_send_closes_with_not_available(server: Server) -> None:
    end = await close_of(server, '{"send":{"data":1}}')
    assert (end.code, end.reason) == (3508, "not available")


async def test_what_came_before_the_bad_line_is_answered(server: Server) -> None:
    client = await server.raw()
    await client.send(
        {"id": 8, "unsubscribe": {"channel": "ch"}},
        {"id": 9, "nonsense": {}},
        {"id": 10, "unsubscribe": {"channel": "ch"}},
    )
    bad_request(await client.closed())
    assert [m["id"] for m in client.pushes] == [8]
    client.tcp.close()


# Channels, options, limits.

TOO_LONG = "x" * 256


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ({"subscribe": {"channel": TOO_LONG}}, 107),
        ({"publish": {"channel": TOO_LONG, "data": 1}}, 107),
        ({"history": {"channel": TOO_LONG}}, 107),
        ({"presence": {"channel": TOO_LONG}}, 107),
        ({"subscribe": {"channel": "x" * 30_000}}, 107),
        ({"subscribe": {"channel": "stra\N{LATIN SMALL LETTER SHARP S}e"}}, 107),
        ({"publish": {"channel": "\N{GRINNING FACE}", "data": 1}}, 107),
        ({"subscribe": {"channel": "numbers:12a"}}, 107),
        ({"subscribe": {"channel": "nowhere:ch"}}, 102),
        ({"publish": {"channel": "nowhere:ch", "data": 1}}, 102),
        ({"history": {"channel": "nowhere:ch"}}, 102),
        ({"presence_stats": {"channel": ":ch"}}, 102),
        ({"subscribe": {"channel": "$ch"}}, 103),
        ({"subscribe": {"channel": "ch", "tf": {"op": "and"}}}, 107),
        ({"history": {"channel": "plain:ch"}}, 108),
        ({"presence": {"channel": "plain:ch"}}, 108),
        ({"presence_stats": {"channel": "kept:ch"}}, 108),
        ({"history": {"channel": "ch", "reverse": True, "since": {"offset": 0}}}, 107),
        ({"history": {"channel": "ch", "since": {"offset": 1, "epoch": "x"}}}, 112),
        ({"rpc": {"method": "m"}}, 108),
        ({"refresh": {"token": "t"}}, 108),
        ({"sub_refresh": {"channel": "ch", "token": "t"}}, 108),
        ({"ping": {}}, 108),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_a_command_that_is_refused_leaves_the_connection(
    server: Server, command: dict[str, Any], code: int
) -> None:
    async with await server.raw() as client:
        error = await refused(client, **command)
        assert error["code"] == code
        assert error["message"]
        assert "temporary" not in error


async def test_the_longest_channel_name(server: Server) -> None:
    async with await server.raw() as client:
        name = "x" * 255
        await client.subscribe(name)
        await client.publish(name, 1)
        await client.publications(name, 1)


async def test_subscribing_twice_and_one_channel_too_many(server: Server) -> None:
    async with await server.raw() as client:
        for number in range(128):
            await client.subscribe(f"limit-{number}")
        error = await refused(client, subscribe={"channel": "limit-0"})
        assert error == {"code": 105, "message": "already subscribed"}
        error = await refused(client, subscribe={"channel": "limit-x"})
        assert error == {"code": 106, "message": "limit exceeded"}


@pytest.mark.parametrize("offset", [2**53 - 1, 2**52])
async def test_an_offset_beyond_the_stream_is_not_recovered(
    server: Server, channel: str, offset: int
) -> None:
    async with await server.raw() as client:
        ask = {"recover": True, "offset": offset}
        result = await client.subscribe(channel, **ask)
        assert result["was_recovering"] is True
        assert "recovered" not in result
        assert result["offset"] == 0


# Payloads.


async def heard(client: RawClient, channel: str) -> dict[str, Any]:
    """Return the client's own publication, which may come after its reply."""
    messages = [await client.message() for _ in range(2)]
    assert {"id": 99, "publish": {}} in messages
    [push] = [message["push"] for message in messages if "push" in message]
    assert push["channel"] == channel
    publication: dict[str, Any] = push["pub"]
    return publication


@pytest.mark.requirement("B114")
@pytest.mark.parametrize("depth", [1, 97, 98])
async def test_a_payload_as_deep_as_may_be(
    server: Server, channel: str, depth: int
) -> None:
    # The command and its parameters take two of the hundred levels.
    async with await server.raw() as client:
        await client.subscribe(channel)
        text = "[" * depth + "]" * depth
        await client.send_text(
            f'{{"id":99,"publish":{{"channel":"{channel}","data":{text}}}}}'
        )
        publication = await heard(client, channel)
        assert json.dumps(publication["data"]) == text


async def test_a_raw_newline_in_a_payload_is_whitespace(
    server: Server, channel: str
) -> None:
    async with await server.raw() as client:
        await client.subscribe(channel)
        data = '{\n"a"\r\n:\n[1,\n\n2]}'
        await client.send_text(
            f'{{"id":99,"publish":{{"channel":"{channel}","data":{data}}}}}'
        )
        publication = await heard(client, channel)
        assert publication["data"] == {"a": [1, 2]}


async def test_a_raw_newline_within_a_string_closes(server: Server) -> None:
    frame = '{"id":9,"publish":{"channel":"ch","data":"a\nb"}}'
    bad_request(await close_of(server, frame))


def publish_of(channel: str, size: int) -> str:
    """Return a publish command of exactly *size* bytes."""
    head = f'{{"id":99,"publish":{{"channel":"{channel}","data":"'
    return head + "x" * (size - len(head) - 3) + '"}}'


@pytest.mark.parametrize("under", [1, 0])
async def test_a_message_at_the_limit(server: Server, channel: str, under: int) -> None:
    size = server.message_size - under
    async with await server.raw() as client:
        await client.subscribe(channel)
        text = publish_of(channel, size)
        assert len(text) == size
        await client.send_text(text)
        publication = await heard(client, channel)
        assert set(publication["data"]) == {"x"}


@pytest.mark.parametrize("over", [1, 36 * KiB, 960 * KiB])
async def test_a_message_over_the_limit_closes_with_1009(
    server: Server, channel: str, over: int
) -> None:
    size = server.message_size + over
    client = await server.raw()
    with contextlib.suppress(OSError):  # it may be closed while we still write
        await client.send_text(publish_of(channel, size))
    end = await client.closed()
    assert end.code in (1009, None)
    if over == 1:
        assert end.code == 1009
    client.tcp.close()


@pytest.mark.requirement("B112")
@pytest.mark.parametrize("size", [5, 10, 15])
async def test_a_message_of_megabytes_is_refused_by_its_head(
    server: Server, size: int
) -> None:
    client = await server.raw()
    length = (size * 1024 * KiB).to_bytes(8, "big")
    await client.tcp.send(b"\x81\xff" + length + bytes(4) + b"{" * 1000)
    end = await client.closed()
    assert (end.code, end.reason) == (1009, "message too big")
    client.tcp.close()


@pytest.mark.requirement("B122")
@pytest.mark.parametrize(
    "text",
    [
        "\N{GRINNING FACE}",
        "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5}",
        "\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}\x7f\x85",
        "\N{RIGHT-TO-LEFT OVERRIDE}abc\N{POP DIRECTIONAL FORMATTING}",
        "e\N{COMBINING ACUTE ACCENT}\ufffd\uffff\U0010ffff",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("escaped", [True, False])
async def test_text_of_every_kind_arrives_as_it_was_sent(
    server: Server, text: str, escaped: bool
) -> None:
    async with await server.raw() as client:
        name = "unicode"
        await client.subscribe(name)
        data = json.dumps(text, ensure_ascii=escaped)
        await client.send_text(
            f'{{"id":99,"publish":{{"channel":"{name}","data":{data}}}}}'
        )
        publication = await heard(client, name)
        assert publication["data"] == text


async def test_a_message_over_the_limit_in_fragments(
    server: Server, channel: str
) -> None:
    client = await server.raw()
    text = publish_of(channel, server.message_size + 1).encode()
    half = server.message_size // 2
    await client.send_frame(TEXT, text[:half], fin=False)
    await client.send_frame(CONTINUATION, text[half:])
    assert (await client.closed()).code == 1009
    client.tcp.close()


async def test_a_message_in_fragments(server: Server, channel: str) -> None:
    async with await server.raw() as client:
        await client.subscribe(channel)
        # As many small fragments as its budget has (tests/e2e/test_frames.py).
        text = publish_of(channel, 100).encode()
        await client.send_frame(TEXT, text[:1], fin=False)
        for at in range(1, 99):
            await client.send_frame(CONTINUATION, text[at : at + 1], fin=False)
        await client.send_frame(CONTINUATION, text[99:])
        await heard(client, channel)


@pytest.mark.requirement("B39")
@pytest.mark.parametrize("over", [0, 1])
async def test_a_publication_of_the_server_api_at_and_over_its_limit(
    server: Server, channel: str, over: int
) -> None:
    limit = 512 * KiB
    async with server.api() as api, await server.raw() as client:
        await client.subscribe(channel)
        response = await api.post(
            "publish", {"channel": channel, "data": "x" * (limit - 2 + over)}
        )
        assert response.status == 200
        if over:
            assert response.json["error"]["code"] == 107
            assert await api.publish(channel, 1) == 1
        else:
            assert response.json["result"]["offset"] == 1
        await client.publications(channel, 1)


# Bytes that are not text.


@pytest.mark.requirement("B115")
async def test_invalid_utf8_closes_with_1007(server: Server) -> None:
    client = await server.raw()
    await client.send_frame(TEXT, b'{"id":9,"rpc":{"method":"\xff"}}')
    assert (await client.closed()).code == 1007
    client.tcp.close()


async def test_a_surrogate_in_utf8_closes_with_1007(server: Server) -> None:
    client = await server.raw()
    await client.send_frame(TEXT, b'{"id":9,"rpc":{"method":"\xed\xa0\x80"}}')
    assert (await client.closed()).code == 1007
    client.tcp.close()


@pytest.mark.requirement("B116")
@pytest.mark.parametrize(
    "payload", [b"", b"\x00", b'{"id":9,"rpc":{}}', b"\xff" * 20], ids=repr
)
@pytest.mark.parametrize("connected", [True, False])
async def test_a_binary_frame_closes(
    server: Server, payload: bytes, connected: bool
) -> None:
    client = await server.raw(connected=connected)
    await client.send_frame(BINARY, payload)
    bad_request(await client.closed())
    client.tcp.close()


@pytest.mark.requirement("B121")
@pytest.mark.parametrize(
    ("opcode", "options"),
    [
        (TEXT, {"masked": False}),
        (TEXT, {"rsv": 4}),
        (0x3, {}),
        (CONTINUATION, {}),
        (0x9, {"fin": False}),
    ],
    ids=str,
)
async def test_a_frame_against_rfc_6455_closes_with_1002(
    server: Server, opcode: int, options: dict[str, Any]
) -> None:
    client = await server.raw()
    await client.send_frame(opcode, b"{}", **options)
    assert (await client.closed()).code == 1002
    client.tcp.close()


# Quantity.


@pytest.fixture
def wide(make_server: Callable[..., Server]) -> Server:
    settings = {
        "STEADWIRE_SERVER_MESSAGE_SIZE": str(1024 * KiB),
        "STEADWIRE_CHANNELS_NAMESPACES": NAMESPACES,
    }
    return make_server(settings).start_blocking()


async def test_ten_thousand_commands_in_a_frame(wide: Server) -> None:
    before = wide.descriptors()
    async with await wide.raw() as other, await wide.raw() as client:
        await other.subscribe("plain:ch")
        numbers = range(10, 10_010)
        commands = [
            {"id": n, "publish": {"channel": "plain:ch", "data": n}}
            if n % 100 == 0
            else {"id": n, "unsubscribe": {"channel": "x"}}
            for n in numbers
        ]
        text = "\n".join(map(json.dumps, commands)).encode()
        await client.send_frame(TEXT, text[:-1], fin=False)
        await client.send_frame(PING, b"read")  # and all that came before it
        assert (await client.frame()).payload == b"read"
        # The server stands still, so it reads both in one turn, the other's last.
        with stopped(wide.process.pid):
            await client.send_frame(CONTINUATION, text[-1:])
            await other.send({"id": 9, "publish": {"channel": "plain:ch", "data": "o"}})
        told = []
        while len(told) < 101:
            message = await other.message()
            told += [message["push"]["pub"]["data"]] if "push" in message else []
        # It waited for some portions of the frame, and not for all of it.
        assert told.index("o") <= 20
        told.remove("o")
        assert told == list(range(100, 10_010, 100))
        answers = [await client.message() for _ in numbers]
        answers.sort(key=lambda answer: int(answer["id"]))
        assert [answer["id"] for answer in answers] == list(numbers)
        assert not any("error" in answer for answer in answers)
    await settled(wide, before)


@pytest.mark.requirement("R39", "B123", "B133")
async def test_ten_thousand_publishes_in_a_frame(wide: Server) -> None:
    async with await wide.raw() as client:
        await client.subscribe("ch")
        numbers = range(10, 10_010)
        await client.send_text(
            "\n".join(
                f'{{"id":{n},"publish":{{"channel":"ch","data":{n}}}}}' for n in numbers
            )
        )
        replies = []
        offsets = []
        while len(replies) < 10_000 or len(offsets) < 10_000:
            message = await client.message()
            if "id" in message:
                assert message == {"id": message["id"], "publish": {}}
                replies.append(message["id"])
            else:
                publication = message["push"]["pub"]
                assert publication["data"] == publication["offset"] + 9
                offsets.append(publication["offset"])
        assert replies == list(numbers)
        assert offsets == list(range(1, 10_001))


@pytest.mark.requirement("B87")
async def test_ten_thousand_pongs_in_a_frame(server: Server) -> None:
    bad_request(await close_of(server, "\n".join(["{}"] * 10_000)))


async def test_bad_input_from_a_hundred_connections_at_once(server: Server) -> None:
    async def one(number: int) -> int | None:
        frames = list(NO_COMMANDS.values())
        end = await close_of(server, frames[number % len(frames)])
        return end.code

    codes = await asyncio.gather(*(one(number) for number in range(100)))
    assert set(codes) == {3501}


@pytest.mark.parametrize("half", [b"", b"\x81", b"\x81\xfe\xff\xff", b"\x81\xff"])
async def test_a_connection_that_is_cut_in_the_middle_of_a_frame(
    server: Server, half: bytes
) -> None:
    client = await server.raw()
    await client.subscribe("ch")
    await client.tcp.send(half)
    client.reset()

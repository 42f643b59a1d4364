"""Protobuf on raw sockets: how a client chooses it, and bad input in it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.harness.raw import BINARY, CLOSE, CONTINUATION, PATH, TEXT, RawClient
from tests.harness.server import Server
from tests.protocol.mutants import commands_like
from tests.protocol.public import Command, commands, frame, messages

CHOICES: dict[str, dict[str, Any]] = {
    "subprotocol": {"headers": {"Sec-WebSocket-Protocol": "centrifuge-protobuf"}},
    "first of those we know": {
        "headers": {
            "Sec-WebSocket-Protocol": "other, centrifuge-protobuf, centrifuge-json"
        }
    },
    "format": {"path": f"{PATH}?format=protobuf"},
    "cf_protocol": {"path": f"{PATH}?cf_protocol=protobuf&cf_protocol_version=v2"},
    "beside an empty header": {
        "path": f"{PATH}?format=protobuf",
        "headers": {"Sec-WebSocket-Protocol": ""},
    },
}
JSON_CHOICES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "empty header": {"headers": {"Sec-WebSocket-Protocol": ""}},
    "subprotocol": {"headers": {"Sec-WebSocket-Protocol": "centrifuge-json"}},
    "unknown subprotocol": {"headers": {"Sec-WebSocket-Protocol": "soap"}},
    "other format": {"path": f"{PATH}?format=xml&cf_protocol=json"},
    "subprotocol before format": {
        "path": f"{PATH}?format=protobuf",
        "headers": {"Sec-WebSocket-Protocol": "centrifuge-json"},
    },
}


class Binary:
    """A protobuf client that sends exactly the bytes a test gives it."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw
        self.found: list[Any] = []

    async def send(self, data: bytes, **options: Any) -> None:
        await self.raw.send_frame(BINARY, data, **options)

    async def until(self, condition: Any) -> Any:
        """Return the first message that is as asked for; answers pings."""
        async with asyncio.timeout(10):
            while True:
                for message in self.found:
                    if condition(message):
                        return message
                received = await self.raw.frame()
                assert received.opcode == BINARY, received
                more = messages(received.payload)
                for message in more:
                    if message == {}:
                        await self.send(b"\0")
                self.found += more

    async def reply(self, number: int) -> Any:
        return await self.until(lambda message: message.get("id") == number)

    async def closed(self) -> tuple[int, str]:
        """Return the code and reason of the close frame, after all before it."""
        while True:
            received = await self.raw.frame()
            if received.opcode == CLOSE:
                payload = received.payload
                return int.from_bytes(payload[:2], "big"), payload[2:].decode()
            self.found += messages(received.payload)


async def binary(server: Server, *, connected: bool = True) -> Binary:
    client = Binary(
        await RawClient.open(server.port, headers=CHOICES["subprotocol"]["headers"])
    )
    if connected:
        await client.send(commands({"id": 1, "connect": {}}))
        await client.reply(1)
    return client


@pytest.fixture(autouse=True)
async def bystander(server: Server, channel: str) -> AsyncIterator[None]:
    """Check that another protobuf client and the server are not affected."""
    client = await binary(server)
    name = f"{channel}-bystander"
    await client.send(commands({"id": 2, "subscribe": {"channel": name}}))
    await client.reply(2)
    yield
    publish = {"channel": name, "data": {"still": "here"}}
    await client.send(commands({"id": 3, "publish": publish}))
    assert await client.reply(3) == {"id": 3, "publish": {}}
    push = await client.until(lambda message: "push" in message)
    assert push["push"]["pub"]["data"] == {"still": "here"}
    assert "Traceback" not in server.output()


@pytest.mark.requirement("B92")
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
async def test_protobuf_is_chosen(server: Server, choice: dict[str, Any]) -> None:
    raw = await RawClient.open(server.port, **choice)
    offered = choice.get("headers", {}).get("Sec-WebSocket-Protocol")
    expected = "centrifuge-protobuf" if offered else None
    assert raw.headers.get("sec-websocket-protocol") == expected
    client = Binary(raw)
    await client.send(commands({"id": 7, "connect": {"name": "raw"}}))
    result = (await client.reply(7))["connect"]
    assert result["client"] and result["ping"] == 25 and result["pong"] is True


@pytest.mark.requirement("B93")
@pytest.mark.parametrize("choice", JSON_CHOICES.values(), ids=JSON_CHOICES)
async def test_json_is_chosen(server: Server, choice: dict[str, Any]) -> None:
    raw = await RawClient.open(server.port, **choice)
    offered = choice.get("headers", {}).get("Sec-WebSocket-Protocol")
    expected = "centrifuge-json" if offered == "centrifuge-json" else None
    assert raw.headers.get("sec-websocket-protocol") == expected
    assert (await raw.connect())["ping"] == 25


@pytest.mark.parametrize("connected", [True, False])
async def test_a_text_frame_closes(server: Server, connected: bool) -> None:
    client = await binary(server, connected=connected)
    await client.raw.send_frame(TEXT, b'{"id":1,"connect":{}}')
    assert await client.closed() == (3501, "bad request")


async def test_a_binary_frame_closes_a_client_of_json(server: Server) -> None:
    raw = await RawClient.open(server.port)
    await raw.send_frame(BINARY, commands({"id": 1, "connect": {}}))
    assert (await raw.closed()).code == 3501


MALFORMED = {
    "nothing": b"",
    "half a length": b"\x80",
    "length of 2**64 - 1": b"\xff" * 9 + b"\x01",
    "length beyond the frame": b"\x7f\x08\x01",
    "not UTF-8": frame(b"\x3a\x03\x0a\x01\xff"),
    "groups": frame(b"\x0b" * 60_000),
    "two methods": frame(Command(id=2, publish={}, rpc={})),
    "4097 pongs": b"\0" * 4097,
    "a pong that nobody asked for": b"\0",
    "no method": frame(Command(id=2)),
    "no id": frame(Command(publish={"channel": "ch", "data": b"1"})),
    "no channel": frame(Command(id=2, publish={"data": b"1"})),
    "connect again": frame(Command(id=2, connect={})),
    "offset of 2**64 - 1": frame(
        Command(id=2, subscribe={"channel": "x", "recover": True, "offset": 2**64 - 1})
    ),
    "JSON": b'{"id":2,"rpc":{}}',
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_malformed_closes(server: Server, data: bytes) -> None:
    client = await binary(server)
    await client.send(data)
    assert await client.closed() == (3501, "bad request")


async def test_anything_before_the_connect_closes(server: Server) -> None:
    for data in (b"\0", frame(Command(id=1, ping={})), frame(Command(send={}))):
        client = await binary(server, connected=False)
        await client.send(data)
        assert await client.closed() == (3501, "bad request")


async def test_a_message_over_64_kib_is_too_large(server: Server) -> None:
    client = await binary(server)
    data = b'"' + b"x" * 65_400 + b'"'
    fits = frame(Command(id=2, publish={"channel": "big", "data": data}))
    await client.send(fits)
    assert await client.reply(2) == {"id": 2, "publish": {}}
    await client.send(fits + b"\0" * 200)
    assert (await client.closed())[0] == 1009


async def test_a_command_in_pieces(server: Server) -> None:
    client = await binary(server)
    data = commands({"id": 2, "publish": {"channel": "pieces", "data": [1]}})
    await client.send(data[:3], fin=False)
    for byte in data[3:-1]:
        await client.raw.send_frame(CONTINUATION, bytes([byte]), fin=False)
    await client.raw.send_frame(CONTINUATION, data[-1:])
    assert await client.reply(2) == {"id": 2, "publish": {}}


async def test_many_commands_in_one_frame_are_answered_in_order(
    server: Server,
) -> None:
    client = await binary(server)
    await client.send(
        commands(
            *(
                {"id": n, "publish": {"channel": "many", "data": n}}
                for n in range(2, 102)
            )
        )
    )
    await client.reply(101)
    assert [m["id"] for m in client.found] == [1, *range(2, 102)]


async def test_broken_frames_of_many_kinds(server: Server) -> None:
    seed = 4242
    print(f"seed {seed}")
    ends = set()
    for data in commands_like(random.Random(seed), 300):
        client = await binary(server, connected=False)
        await client.send(commands({"id": 99, "connect": {}}) + data)
        await client.send(commands({"id": 98, "connect": {}}))  # ends it, at the latest
        code, _ = await client.closed()
        ends.add(code)
        client.raw.tcp.close()
    assert ends <= {3501, 3500, 3508}

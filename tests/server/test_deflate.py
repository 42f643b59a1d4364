"""permessage-deflate over HTTP/1.1: what is agreed, and what two libraries make of it.

The parser's own cases are in tests/speedups/test_deflated_frames.py, bombs of a whole
server in test_message_size.py.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory as Offer,
)
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from service.server.deflate import negotiated
from tests.harness.raw import BINARY, TEXT
from tests.server.running import Process, process_with

ALONE = b"permessage-deflate; server_no_context_takeover; client_no_context_takeover"
DEFLATE_SIZE = 100

server = process_with(
    {"deflate": True, "deflate_size": DEFLATE_SIZE},
    paths=("frames", "frames, handed over"),
)


@pytest.mark.parametrize(
    ("offers", "answer", "window"),
    [
        (["permessage-deflate"], b"", 15),
        (["permessage-deflate; client_max_window_bits"], b"", 15),
        (["permessage-deflate;client_max_window_bits=8"], b"", 15),
        (["permessage-deflate; server_no_context_takeover"], b"", 15),
        (["permessage-deflate; client_no_context_takeover"], b"", 15),
        (
            ["permessage-deflate; server_max_window_bits=15"],
            b"; server_max_window_bits=15",
            15,
        ),
        (
            ["permessage-deflate; server_max_window_bits=10"],
            b"; server_max_window_bits=10",
            10,
        ),
        (
            ['permessage-deflate; server_max_window_bits="9"'],
            b"; server_max_window_bits=9",
            9,
        ),
        (
            [
                "permessage-deflate; server_max_window_bits=8",
                "x-webkit-deflate-frame",
                "permessage-deflate; server_max_window_bits=12",
                "permessage-deflate",
            ],
            b"; server_max_window_bits=12",
            12,
        ),
    ],
)
def test_an_offer_that_is_accepted(
    offers: list[str], answer: bytes, window: int
) -> None:
    assert negotiated(offers) == (ALONE + answer, window)


@pytest.mark.parametrize(
    "offer",
    [
        "",
        "permessage-bzip2",
        "permessage-deflate; mystery",
        "permessage-deflate;",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=09",
        "permessage-deflate; server_max_window_bits=ten",
        "permessage-deflate; client_max_window_bits=7",
        "permessage-deflate; client_max_window_bits=",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
    ],
)
def test_an_offer_that_is_declined(offer: str) -> None:
    assert negotiated([offer]) is None


TEXTS = ["", "short", "grün " * 400, "x" * 60_000, "😀" * 99]


@pytest.mark.parametrize("bits", [None, 9, 15])
async def test_the_library_websockets_as_a_client(
    server: Process, bits: int | None
) -> None:
    offer = Offer(server_max_window_bits=bits, client_max_window_bits=True)
    url = f"ws://127.0.0.1:{server.port}{server.echo}"
    async with connect(url, compression=None, extensions=[offer]) as client:
        (agreed,) = client.protocol.extensions
        assert agreed.remote_no_context_takeover and agreed.local_no_context_takeover
        assert agreed.remote_max_window_bits == (bits or 15)
        for _ in range(2):
            for text in TEXTS:
                await client.send(text)
                assert await client.recv() == text
        await client.send(["in ", "fragments ", "x" * 5000])
        assert await client.recv() == "in fragments " + "x" * 5000
        await client.send(bytes(range(256)) * 99)
        assert await client.recv() == bytes(range(256)) * 99


async def test_the_library_wsproto_as_a_client(server: Process) -> None:
    deflate = PerMessageDeflate()
    peer = WSConnection(ConnectionType.CLIENT)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    host = f"127.0.0.1:{server.port}"
    writer.write(peer.send(Request(host, server.echo, extensions=[deflate])))

    async def message(kind: type[Any]) -> Any:
        parts = []
        while True:
            for event in peer.events():
                if isinstance(event, AcceptConnection):
                    assert kind is AcceptConnection
                    return event
                assert isinstance(event, kind)
                parts.append(event.data)
                if event.message_finished:
                    return type(parts[0])().join(parts)
            peer.receive_data(await reader.read(65536))

    await message(AcceptConnection)
    assert deflate.enabled()
    for _ in range(2):
        for text in TEXTS:
            writer.write(peer.send(TextMessage(data=text)))
            assert await message(TextMessage) == text
    writer.write(peer.send(BytesMessage(data=bytes(9000))))
    assert await message(BytesMessage) == bytes(9000)
    writer.close()
    await writer.wait_closed()


async def test_only_messages_from_a_size_on_are_deflated(server: Process) -> None:
    headers = {"Sec-WebSocket-Extensions": "permessage-deflate"}
    async with await server.open(server.echo, headers=headers) as client:
        assert client.headers["sec-websocket-extensions"] == ALONE.decode()
        for size, rsv in ((DEFLATE_SIZE - 1, 0), (DEFLATE_SIZE, 4)):
            await client.send_text("a" * size)
            frame = await client.frame()
            assert (frame.opcode, frame.rsv) == (TEXT, rsv)
        data = frame.payload + b"\x00\x00\xff\xff"
        assert zlib.decompressobj(-15).decompress(data) == b"a" * DEFLATE_SIZE


async def test_one_that_did_not_ask_gets_plain_frames(server: Process) -> None:
    for offer in ({}, {"Sec-WebSocket-Extensions": "permessage-deflate; mystery"}):
        async with await server.open(server.echo, headers=offer) as client:
            assert "sec-websocket-extensions" not in client.headers
            await client.send_frame(BINARY, bytes(5000))
            assert await client.frame() == (True, 0, BINARY, bytes(5000))

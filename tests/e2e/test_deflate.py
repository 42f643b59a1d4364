"""permessage-deflate on the real server: official SDKs beside clients without it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

from tests.harness.fixtures import server_with
from tests.harness.raw import TEXT
from tests.harness.server import Server

server = server_with({"STEADWIRE_SERVER_DEFLATE": "true"})

TEXTS = [f"{number} " + "the same words again " * 200 for number in range(5)]


async def test_a_publication_is_deflated_for_those_that_asked(
    server: Server, make_client: Callable[..., Any], channel: str
) -> None:
    """The SDK's library offers it, one raw client does, and one does not."""
    client = await make_client(server.url)
    await client.connect()
    await client.subscribe(channel)
    async with (
        await server.raw() as plain,
        await server.raw(
            headers={"Sec-WebSocket-Extensions": "permessage-deflate"}
        ) as asked,
    ):
        assert "sec-websocket-extensions" not in plain.headers
        assert asked.headers["sec-websocket-extensions"].startswith(
            "permessage-deflate"
        )
        await plain.subscribe(channel)
        await asked.subscribe(channel)
        for text in TEXTS:
            await client.publish(channel, text)
        await client.seen("publication", len(TEXTS))
        seen = client.publications(channel)
        assert [each["data"] for each in seen] == TEXTS
        told = await plain.publications(channel, len(TEXTS))
        assert [each["data"] for each in told] == TEXTS

        pushes, sizes = [], []
        while len(pushes) < len(TEXTS):
            frame = await asked.frame()
            assert (frame.opcode, frame.rsv, frame.fin) == (TEXT, 4, True)
            inflate = zlib.decompressobj(-15)  # each alone
            data = inflate.decompress(frame.payload + b"\x00\x00\xff\xff")
            sizes.append(len(frame.payload))
            pushes += [json.loads(line)["push"]["pub"] for line in data.splitlines()]
        assert [each["data"] for each in pushes] == TEXTS
        assert sum(sizes) < len(TEXTS) * 400  # of 4,300 each

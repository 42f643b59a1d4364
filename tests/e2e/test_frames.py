"""Frames that are not commands, on real sockets: what they may cost, what they show."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.connections.frame_quota import BEFORE_CONNECT
from tests.harness.fixtures import framings, server_with
from tests.harness.metrics import scrape
from tests.harness.raw import (
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawClient,
)
from tests.harness.server import Server

framing = framings()

TIMEOUT = 2.0  # s

server = server_with(
    {
        "STEADWIRE_CLIENT_PING_INTERVAL": "0.8",
        "STEADWIRE_CLIENT_PONG_TIMEOUT": "0.4",
        "STEADWIRE_CLIENT_HEARTBEAT_TIMEOUT": str(TIMEOUT),
    }
)


async def refused(server: Server) -> float:
    async with server.api() as api:
        found = await scrape(api)
    return found["connections_refused_total{frames}"]


def frame_of(kind: str, number: int) -> dict[str, Any]:
    if kind == "fragment":
        opcode = CONTINUATION if number else TEXT
        return {"opcode": opcode, "payload": b"", "fin": False}
    return {"opcode": PING if kind == "ping" else PONG, "payload": b"%d" % number}


@pytest.mark.parametrize("kind", ["ping", "pong", "fragment"])
async def test_a_socket_that_does_not_connect_is_closed_at_its_ninth_frame(
    kind: str, server: Server
) -> None:
    before = await refused(server)
    async with await server.raw(connected=False) as client:
        for number in range(BEFORE_CONNECT + 1000):
            await client.send_frame(**frame_of(kind, number))
        answered = []
        while (frame := await client.frame()).opcode != CLOSE:
            assert frame.opcode == PONG
            answered.append(frame.payload)
        assert int.from_bytes(frame.payload[:2], "big") == 3013
        assert frame.payload[2:] == b"too many requests"
        expected = BEFORE_CONNECT if kind == "ping" else 0
        assert answered == [b"%d" % number for number in range(expected)]
    assert await refused(server) == before + 1


async def test_eight_pings_do_not_keep_a_client_from_connecting(server: Server) -> None:
    async with await server.raw(connected=False) as client:
        for number in range(BEFORE_CONNECT):
            await client.send_frame(PING, b"%d" % number)
            assert (await client.frame()).payload == b"%d" % number
        await client.connect()
        for number in range(50):  # half of what may come at once
            await client.send_frame(PING, b"%d" % number)
            assert (await client.frame()).payload == b"%d" % number
        await client.subscribe("ch")


async def test_any_frame_is_a_sign_of_life(server: Server) -> None:
    """They answer no ping of the protocol; two that say nothing die meanwhile."""
    kinds = ("ping", "pong", "fragment")
    clients = [await server.raw() for _ in kinds]
    number = 0
    for _ in range(2):
        async with await server.raw() as silent:
            dead = asyncio.ensure_future(code_of(silent))
            while not dead.done():
                for kind, client in zip(kinds, clients, strict=True):
                    await client.send_frame(**frame_of(kind, number))
                number += 1
                await asyncio.wait([dead], timeout=0.2)
            assert await dead == 3012
    for kind, client in zip(kinds, clients, strict=True):
        opcode = CONTINUATION if kind == "fragment" else TEXT
        await client.send_frame(opcode, b'{"id":9,"subscribe":{"channel":"ch"}}')
        while (message := await reply(client)).get("id") != 9:
            pass
        assert "error" not in message
        client.tcp.close()


async def code_of(client: RawClient) -> int:
    """Return the code with which a client that says nothing is closed."""
    while (frame := await client.frame()).opcode != CLOSE:
        pass
    return int.from_bytes(frame.payload[:2], "big")


async def reply(client: RawClient) -> dict[str, Any]:
    """Return the next message, whatever it is; pongs of the other layer are skipped."""
    while (frame := await client.frame()).opcode == PONG:
        pass
    assert frame.opcode == TEXT
    message: dict[str, Any] = json.loads(frame.payload.decode().split("\n")[-1])
    return message


@pytest.mark.requirement("R35")
async def test_signs_of_life_in_quick_succession_are_free_up_to_their_budgets(
    server: Server,
) -> None:
    before = await refused(server)
    async with await server.raw() as client:
        # Far less than 0.1 s apart: commands, then pings of the protocol.
        await client.send(
            *({"id": n, "history": {"channel": "h"}} for n in range(9, 59))
        )
        for number in range(9, 59):
            assert (await client.message())["id"] == number
        for number in range(50):
            await client.send_frame(PING, b"%d" % number)
        for number in range(50):
            while (frame := await client.frame()).opcode != PONG:
                pass
            assert frame.payload == b"%d" % number
        assert await refused(server) == before
        # One second's worth is 10, and 100 may come at once.
        for number in range(1000):
            await client.send_frame(PING, b"%d" % number)
        assert await code_of(client) == 3013
    assert await refused(server) == before + 1

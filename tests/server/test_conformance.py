"""RFC 6455 case by case, against an echo that only these tests have.

The cases are those of the parsers (tests/speedups/cases.py), sent to a real server:
over our own frames by ASGI, over them handed over, and over wsproto. By ASGI a close of
the peer overtakes what the application has not echoed yet.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness.raw import BINARY, CLOSE, PING, PONG, TEXT, Closed, RawClient
from tests.server.running import PATHS, process_with
from tests.speedups.cases import CASES, LIMIT
from tests.speedups.streams import FAILED, frame

REASONS = {
    1002: b"protocol error",
    1007: b"invalid payload data",
    1009: b"message too big",
}
BYE = b"\x03\xe8bye"

server = process_with({"message_size": LIMIT}, paths=tuple(PATHS))


def answers(events: list[tuple[int, Any]]) -> list[tuple[int, bytes]]:
    """Return what an echo sends for *events*, to the close of the WebSocket."""
    sent: list[tuple[int, bytes]] = []
    for kind, value in events:
        if kind == TEXT:
            sent.append((TEXT, value.encode()))
        elif kind == BINARY:
            sent.append((BINARY, value))
        elif kind == PING:
            sent.append((PONG, value))
        elif kind == CLOSE:
            code, reason = value
            octets = b"" if code == 1005 else code.to_bytes(2, "big")
            return [*sent, (CLOSE, octets + reason.encode())]
        elif kind == FAILED:
            return [*sent, (CLOSE, value.to_bytes(2, "big") + REASONS[value])]
    return [*sent, (CLOSE, BYE)]


@pytest.mark.parametrize("size", [0, 1, 7], ids=["whole", "by byte", "by seven"])
async def test_all_cases(server: Any, size: int) -> None:
    for name, (data, events) in CASES.items():
        if size:
            data = data[:200]  # a large payload takes as many packets
            if len(data) == 200:
                continue
        expected = answers(events)
        async with await server.open(server.echo) as client:
            for start in range(0, len(data), size or len(data)):
                await client.tcp.send(data[start : start + (size or len(data))])
            if expected[-1] == (CLOSE, BYE):
                found = [await answer(client) for _ in expected[:-1]]
                assert sorted(found) == sorted(expected[:-1]), name
                await client.tcp.send(frame(CLOSE, BYE))
                assert await answer(client) == expected[-1], name
            else:
                found = [await answer(client)]
                while found[-1][0] != CLOSE:
                    found.append(await answer(client))
                for opcodes in ((PONG, CLOSE), (TEXT, BINARY)):
                    some = [each for each in found if each[0] in opcodes]
                    of_all = [each for each in expected if each[0] in opcodes]
                    assert some == of_all[: len(some)], name
                    if opcodes[0] == PONG or server.echo == "/handed":
                        assert len(some) == len(of_all), name
            with pytest.raises(Closed):
                await client.frame()


async def answer(client: RawClient) -> tuple[int, bytes]:
    frame = await client.frame()
    assert (frame.fin, frame.rsv) == (True, 0)
    return frame.opcode, frame.payload


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", b"x" * 125, b"x" * 126, b"x" * LIMIT, "grün 語 😀".encode() * 40],
    ids=len,
)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_fragments_of_every_length(
    server: Any, payload: bytes, opcode: int
) -> None:
    async with await server.open(server.echo) as client:
        for size in (1, 2, 3, 64, 500):
            pieces = [
                payload[start : start + size] for start in range(0, len(payload), size)
            ] or [b""]
            if len(pieces) > 64:
                continue
            stream = b""
            for place, piece in enumerate(pieces):
                last = place == len(pieces) - 1
                stream += frame(opcode if place == 0 else 0, piece, fin=last)
                if not last and place % 7 == 0:
                    stream += frame(PONG, b"unasked")
            await client.tcp.send(stream)
            assert await answer(client) == (opcode, payload)

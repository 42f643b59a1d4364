"""Requests of one address do not delay those of another."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from service.server.http1 import REQUESTS
from tests.harness.process import stopped
from tests.harness.sockets import TcpClient
from tests.server.running import Process

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
ALL = 5 * REQUESTS


async def number(tcp: TcpClient) -> int:
    """Return which request of all the next answer is of."""
    head, body = await tcp.read_answer()
    assert head.startswith(b"HTTP/1.1 200")
    found: int = json.loads(body)["requests"]
    return found


@pytest.mark.parametrize("pipelined", [False, True])
async def test_an_address_has_a_share(
    launch: Callable[..., Process], *, pipelined: bool
) -> None:
    """The server finds the requests of both in one turn, those of one first."""
    server = launch()
    await server.ready()
    many = [await TcpClient.connect(server.port) for _ in range(ALL)]
    other = await TcpClient.connect(server.port, source="127.0.0.2")
    for tcp in (*many, other):
        await tcp.send(GET)
        await number(tcp)
    each = 10 if pipelined else 1
    with stopped(server.pid):
        for tcp in many:
            await tcp.send(GET * each)
        await other.send(GET)
    first = ALL + 2  # the number of the first request of these
    assert await number(other) <= first + 2 * REQUESTS
    found = [await number(tcp) for tcp in many for _ in range(each)]
    assert len(set(found)) == each * ALL
    assert max(found) == first + each * ALL
    for tcp in (*many, other):
        tcp.close()

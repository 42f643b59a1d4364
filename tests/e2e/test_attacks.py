"""Attacks of clients on other clients, each as it was carried out against a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.fixtures import server_with
from tests.harness.process import stopped
from tests.harness.raw import TEXT, RawClient
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

server = server_with({"STEADWIRE_LOG_LEVEL": "debug"})

SOCKETS = 24


@pytest.mark.parametrize("command", ["{}", '{"send":{}}', '{"id":1}'])
async def test_the_last_byte_of_a_large_message_costs_its_address_the_whole(
    server: Server, command: str
) -> None:
    """Each last byte has thousands of commands read; not those of all in one turn."""
    payload = "\n".join([command] * 4096).encode()
    sockets = [await server.raw(connected=False) for _ in range(SOCKETS)]
    for one in sockets:
        await one.send_frame(TEXT, payload[:-1], fin=False)
    async with await RawClient.open(server.port, source="127.0.0.2") as other:
        # A round trip: what came before it is read, or waits for its turn.
        for one in sockets:
            await one.send_frame(9, b"read")
            assert (await one.frame()).payload == b"read"
        begun = len(server.log())
        ended = server.output().count("connection closed")
        with stopped(server.process.pid):
            for one in sockets:
                await one.send_frame(0, payload[-1:])
            await other.send({"id": 1, "connect": {}})
        assert "connect" in await other.message()
    for one in sockets:
        assert (await one.closed()).code == 3501
        one.tcp.close()
    await server.logged("connection closed", ended + SOCKETS)
    events = [line["event"] for line in server.log()[begun:]]
    before = events[: events.index("connection connected")]
    assert before.count("connection closing") <= 2


@pytest.mark.parametrize("sdk", ["js-5.8.0", "python-0.7.0"])
async def test_a_number_that_python_does_not_read_reaches_nobody(
    server: Server, start_host: Callable[..., Any], channel: str, sdk: str
) -> None:
    """The Python SDK ends for good at an integer of more than 4,300 digits."""
    client = await SdkClient.create(await start_host(sdk), server.url)
    await client.connect()
    await client.subscribe(channel)
    for number in ("9" * 4301, "-" + "9" * (server.message_size - 5000)):
        async with await server.raw() as attacker:
            command = {"id": 9, "publish": {"channel": channel, "data": "number"}}
            await attacker.send_text(json.dumps(command).replace('"number"', number))
            assert (await attacker.closed()).code == 3501
    async with server.api() as api:
        body = json.dumps({"channel": channel, "data": "number"})
        body = body.replace('"number"', "9" * 4301)
        headers = {"X-API-Key": server.key, "Content-Type": "application/json"}
        answer = await api.request("POST", "/api/publish", body.encode(), headers)
        assert answer.status == 400
        body = body.replace("9" * 4301, "9" * 4300)
        answer = await api.request("POST", "/api/publish", body.encode(), headers)
        assert answer.status == 200 and "error" not in answer.json
        await client.seen("publication", 1)
    assert client.events["disconnected"] == []

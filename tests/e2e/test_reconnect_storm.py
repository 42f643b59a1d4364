"""A reconnect storm: all clients lose the connection and come back at once."""

from __future__ import annotations

import asyncio

import pytest

from tests.harness.server import Server

CLIENTS = 500


@pytest.mark.requirement("B11", "B79", "B80")
async def test_five_hundred_clients_recover_at_once(
    server: Server, channel: str
) -> None:
    count = int(CLIENTS * server.load)
    clients = await asyncio.gather(*(server.join(channel) for _ in range(count)))
    async with server.api() as api:
        for n in range(1, 21):
            assert await api.publish(channel, {"n": n}) == n
        for client, position in clients:
            assert position["offset"] == 0
            publications = await client.publications(channel, 20)
            assert [pub["offset"] for pub in publications] == list(range(1, 21))
        epoch = clients[0][1]["epoch"]

        for client, _ in clients:
            client.reset()
        for n in range(21, 51):
            assert await api.publish(channel, {"n": n}) == n

        position = {"recover": True, "offset": 20, "epoch": epoch}
        async with asyncio.timeout(30.0):
            clients = await asyncio.gather(
                *(server.join(channel, **position) for _ in range(count))
            )
        for n in range(51, 54):
            assert await api.publish(channel, {"n": n}) == n

    for client, reply in clients:
        assert reply["was_recovering"] is True
        assert reply["recovered"] is True
        assert reply["epoch"] == epoch
        recovered = reply["publications"]
        recovered += await client.publications(channel, 33 - len(recovered))
        assert [(pub["offset"], pub["data"]) for pub in recovered] == [
            (n, {"n": n}) for n in range(21, 54)
        ]
        client.reset()

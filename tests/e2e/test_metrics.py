"""Metrics of a real server, as scrapes show them."""

from __future__ import annotations

import asyncio

import pytest

from tests.harness.api import Api
from tests.harness.metrics import Scrape, scrape
from tests.harness.server import Server


async def settled(api: Api, connections: int = 0) -> Scrape:
    """Scrape until the server has seen the end of all but *connections*."""
    async with asyncio.timeout(10.0):
        while True:
            now = await scrape(api)
            if sum(now.labels("connections").values()) == connections:
                return now


@pytest.mark.requirement("R47")
async def test_nobody_without_the_key_sees_figures(
    server: Server,
) -> None:
    async with server.api() as api:
        for path in ("/metrics", "/stats"):
            for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": "apikey x"}):
                response = await api.request("GET", path, headers=headers)
                assert (response.status, response.body) == (401, b"")
            accepted = {"Authorization": f"apikey {api.key}"}
            assert (await api.request("GET", path, headers=accepted)).status == 200


async def test_prometheus_is_told_what_it_gets(server: Server) -> None:
    async with server.api() as api:
        key = {"X-API-Key": api.key}
        response = await api.request("GET", "/metrics", headers=key)
        assert response.headers["content-type"] == (
            "text/plain; version=0.0.4; charset=utf-8"
        )
        response = await api.request("GET", "/stats", headers=key)
        assert response.headers["content-type"] == "application/json"
        assert response.json["faults"] == {}
        metrics = response.json["metrics"]
        said = Scrape((await api.request("GET", "/metrics", headers=key)).body.decode())
        assert metrics["steadwire_connections"] == said.labels("connections")
        ours = {name for name in said.types if name.startswith("steadwire_")}
        assert metrics.keys() == ours


async def test_a_connection_is_counted_from_its_first_to_its_last_byte(
    server: Server, channel: str
) -> None:
    async with server.api() as api:
        before = await settled(api)
        async with await server.raw() as client:
            await client.subscribe(channel)
            await api.publish(channel, 1)
            now = await scrape(api)
            assert now.labels("connections") == {
                "pending": 0,
                "connected": 1,
                "closing": 0,
            }
            assert (now["users"], now["channels"], now["subscriptions"]) == (1, 1, 1)
            await client.publications(channel, 1)
        assert (await settled(api)).since(before) == {
            "connections_opened_total": 1,
            "connects_total{ok}": 1,
            "auth_total{admitted}": 1,
            "commands_total{connect}": 1,
            "commands_total{subscribe}": 1,
            "closes_total{client}": 1,
            "messages_sent_total": 3,
            "publications_total": 1,
            "commit_batch_size_count": 1,
            "api_calls_total{publish}": 1,
        }

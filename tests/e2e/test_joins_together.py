"""Joins and leaves of one who comes and goes, as the official SDKs are told of them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.conftest import SDKS
from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.metrics import scrape
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

OPTIONS = {
    "allow_subscribe_for_client": True,
    "allow_subscribe_for_anonymous": True,
    "allow_presence_for_subscriber": True,
    "presence": True,
    "join_leave": True,
    "force_push_join_leave": True,
}
ROUNDS = 200

server = server_with({"STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(OPTIONS)})


@pytest.fixture(params=SDKS)
async def make(
    request: pytest.FixtureRequest, start_host: Callable[..., Any], server: Server
) -> Callable[[bool], Awaitable[SdkClient]]:
    host = await start_host(request.param)

    async def make(protobuf: bool) -> SdkClient:
        client = await SdkClient.create(host, server.url, protobuf=protobuf)
        await client.connect()
        return client

    return make


async def test_one_who_comes_and_goes_hundreds_of_times(
    make: Callable[[bool], Awaitable[SdkClient]], server: Server, api: Api, channel: str
) -> None:
    watchers = [await make(False), await make(True)]
    for watcher in watchers:
        await watcher.subscribe(channel)
    await watchers[0].seen("join", 2)
    await watchers[1].seen("join", 1)
    before = (await scrape(api)).labels("joins_leaves_total")
    flapping = await server.raw(connected=False)
    name = (await flapping.connect())["client"]
    for number in range(ROUNDS):
        both: list[dict[str, Any]] = [
            {"id": 3 * number + 10 + step, kind: {"channel": channel}}
            for step, kind in enumerate(("subscribe", "unsubscribe"))
        ]
        await flapping.send(*both)
    await flapping.subscribe(channel)
    last = await server.raw(connected=False)
    other = (await last.connect())["client"]
    await last.subscribe(channel)

    def told(watcher: SdkClient) -> list[tuple[str, str]]:
        return [
            (event["event"], event["info"]["client"])
            for event in watcher.log
            if event["event"] in ("join", "leave")
        ]

    for watcher in watchers:
        await watcher.until(
            lambda w=watcher: ("join", other) in told(w),  # type: ignore[misc]
            "join of the last",
        )
        kinds = [kind for kind, client in told(watcher) if client == name]
        assert kinds == ["join", "leave"] * (len(kinds) // 2) + ["join"]
        found = await watcher.presence(channel)
        assert {name, other} <= found.keys()
        assert len(found) == 4
    after = (await scrape(api)).labels("joins_leaves_total")
    announced = after["announced"] - before["announced"]
    cancelled = after["cancelled"] - before["cancelled"]
    assert announced + cancelled == 2 * ROUNDS + 2
    assert len(kinds) + 1 == announced
    assert cancelled > announced
    assert after["delayed"] == before["delayed"]

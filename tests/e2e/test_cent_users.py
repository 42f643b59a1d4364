"""The official server library's other methods: users, presence, channels, batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import cent
import pytest

from tests.harness.fixtures import server_with
from tests.harness.raw import RawClient
from tests.harness.server import Server

Call = Callable[[str, Any], Awaitable[Any]]


server = server_with(app="tests.http.hooked:app")


@pytest.fixture(params=["sync", "async"])
async def call(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Call]:
    """Call a method of cent's client with a request object."""
    if request.param == "async":
        client = cent.AsyncClient(server.api_url, server.key)

        async def call_async(method: str, body: Any) -> Any:
            return await getattr(client, method)(body)

        yield call_async
        await client.close()
        return
    blocking = cent.Client(server.api_url, server.key)

    async def call_sync(method: str, body: Any) -> Any:
        return await asyncio.to_thread(getattr(blocking, method), body)

    yield call_sync
    blocking.close()


@pytest.fixture
def user(channel: str) -> str:
    """Return a user that no other test has."""
    return f"user-{channel}"


async def enter(server: Server, user: str) -> tuple[RawClient, str]:
    """Connect as *user*; return the connection and its id."""
    client = await server.raw(connected=False)
    return client, (await client.connect(token=user))["client"]


async def test_subscribe_and_unsubscribe(
    server: Server, call: Call, user: str, channel: str
) -> None:
    client, identity = await enter(server, user)
    await call("publish", cent.PublishRequest(channel=channel, data=1))
    request = cent.SubscribeRequest(
        user=user,
        channel=channel,
        client=identity,
        info={"a": 1},
        data={"b": 2},
        recover_since=cent.StreamPosition(offset=0, epoch=""),
        override=cent.ChannelOptionsOverride(presence=cent.BoolValue(value=True)),
    )
    assert isinstance(await call("subscribe", request), cent.SubscribeResult)
    subscribed = (await client.push())["subscribe"]
    assert subscribed["data"] == {"b": 2}
    (publication,) = await client.publications(channel, 1)
    assert publication["data"] == 1
    request = cent.UnsubscribeRequest(user=user, channel=channel)
    assert isinstance(await call("unsubscribe", request), cent.UnsubscribeResult)
    assert (await client.push())["unsubscribe"]["code"] == 2000


async def test_disconnect(server: Server, call: Call, user: str) -> None:
    first, identity = await enter(server, user)
    second, _ = await enter(server, user)
    request = cent.DisconnectRequest(
        user=user,
        whitelist=[identity],
        disconnect=cent.Disconnect(code=4100, reason="over"),
    )
    assert isinstance(await call("disconnect", request), cent.DisconnectResult)
    assert (await second.closed()).code == 4100
    await call("disconnect", cent.DisconnectRequest(user=user))
    assert (await first.closed()).code == 3503
    request = cent.DisconnectRequest(
        user=user, disconnect=cent.Disconnect(code=1, reason="no")
    )
    with pytest.raises(cent.CentApiResponseError) as refusal:
        await call("disconnect", request)
    assert refusal.value.code == 107


async def test_refresh(server: Server, call: Call, user: str) -> None:
    client, identity = await enter(server, user)
    later = int(time.time()) + 3600
    request = cent.RefreshRequest(user=user, client=identity, expire_at=later)
    assert isinstance(await call("refresh", request), cent.RefreshResult)
    await call("refresh", cent.RefreshRequest(user=user, expired=True))
    assert (await client.closed()).code == 3005


async def test_presence_and_stats(
    server: Server, call: Call, user: str, channel: str
) -> None:
    empty = await call("presence", cent.PresenceRequest(channel=channel))
    assert empty.presence == {}
    client, identity = await enter(server, user)
    await client.subscribe(channel)
    found = await call("presence", cent.PresenceRequest(channel=channel))
    info = found.presence[identity]
    assert (info.user, info.client) == (user, identity)
    assert (info.conn_info, info.chan_info) == ({"name": user}, {"as": user})
    stats = await call("presence_stats", cent.PresenceStatsRequest(channel=channel))
    assert (stats.num_clients, stats.num_users) == (1, 1)


async def test_history_remove(call: Call, channel: str) -> None:
    await call("publish", cent.PublishRequest(channel=channel, data=1))
    request = cent.HistoryRemoveRequest(channel=channel)
    assert isinstance(await call("history_remove", request), cent.HistoryRemoveResult)
    page = await call("history", cent.HistoryRequest(channel=channel, limit=-1))
    assert (page.publications, page.offset) == ([], 1)


async def test_channels_and_info(
    server: Server, call: Call, user: str, channel: str
) -> None:
    client, _ = await enter(server, user)
    await client.subscribe(channel)
    request = cent.ChannelsRequest(pattern=f"*{channel[3:]}")
    found = (await call("channels", request)).channels
    assert found[channel].num_clients == 1
    everything = (await call("channels", cent.ChannelsRequest())).channels
    assert channel in everything
    (node,) = (await call("info", cent.InfoRequest())).nodes
    assert node.uid and node.name and node.version
    assert node.num_clients >= 1 and node.num_subs >= 1


@pytest.mark.parametrize("parallel", [False, True])
async def test_batch(call: Call, channel: str, parallel: bool) -> None:
    requests = [
        cent.PublishRequest(channel=channel, data=1),
        cent.BroadcastRequest(channels=[f"{channel}-2", "nowhere:x"], data=2),
        cent.PresenceStatsRequest(channel=channel),
        cent.HistoryRequest(channel=f"{channel}-3", limit=1),
        cent.InfoRequest(),
        cent.ChannelsRequest(pattern="nothing"),
        cent.DisconnectRequest(user="nobody"),
    ]
    result = await call(
        "batch", cent.BatchRequest(requests=requests, parallel=parallel)
    )
    published, broadcast, stats, history, info, channels, _ = result.replies
    assert published.offset == 1
    assert broadcast.responses[0].result.offset == 1
    assert broadcast.responses[1].error.code == 102
    assert stats.num_clients == 0
    assert history.publications == []
    assert len(info.nodes) == 1
    assert channels.channels == {}


async def test_wrong_key(server: Server) -> None:
    client = cent.AsyncClient(server.api_url, "wrong")
    with pytest.raises(cent.CentUnauthorizedError):
        await client.info(cent.InfoRequest())
    await client.close()

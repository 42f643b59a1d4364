"""Threads over WebSockets: cut anywhere, for their own people; typing, cancelling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.agents.runs import finished, made_run, started, text_of, words
from tests.harness import tokens
from tests.harness.api import Api, ApiError
from tests.harness.fixtures import server_with
from tests.harness.sdk import SdkClient, SdkError
from tests.harness.server import Server

server = server_with(
    tokens.settings(
        STEADWIRE_CONNECTIONS_USER_LIMIT="3",
        STEADWIRE_CLIENT_RECOVERY_LIMIT="500",
        STEADWIRE_RUNS_LEASE="20",
    )
)

StartHost = Callable[..., Any]


@pytest.fixture
def thread(thread: str) -> str:
    return f"{thread[:80]}#ann,bob"


async def push(
    server: Server,
    thread: str,
    run: str,
    events: list[dict[str, Any]],
    first: int = 1,
) -> int:
    """Push events of an agent, from number *first*; return the next one's number."""
    path = f"/api/runs/{thread.replace('#', '%23')}/{run}/events?from={first}"
    headers = {"X-API-Key": server.key, "Content-Type": "application/x-ndjson"}
    body = "".join(f"{text_of(each)}\n" for each in events)
    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as client:
        url = f"http://127.0.0.1:{server.port}{path}"
        answer = await client.post(url, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    number: int = answer.json()["next"]
    return number


async def member(host: Any, server: Server, user: str, thread: str) -> SdkClient:
    client = await SdkClient.create(host, server.url, token=tokens.connection(user))
    await client.connect()
    await client.subscribe(f"thread:{thread}")
    return client


@pytest.mark.requirement("R44", "L1")
@pytest.mark.parametrize("step", [25, pytest.param(1, marks=pytest.mark.slow)])
async def test_a_socket_that_is_cut_between_each_two_events_misses_nothing(
    server: Server, thread: str, step: int
) -> None:
    """A viewer that subscribes again from every position of a run of 300 events.

    At a gateway from every fifth, which is as many requests to the table.
    """
    if server.load < 1.0:
        step = max(step, 5)
    run = made_run(41, 300, thread=thread)
    await push(server, thread, "r", run)
    token, channel = tokens.connection("ann"), f"thread:{thread}"
    for position in range(0, len(run) + 1, step):
        client = await server.raw(connected=False)
        await client.send(
            {"id": 1, "connect": {"token": token}},
            {
                "id": 2,
                "subscribe": {"channel": channel, "recover": True, "offset": position},
            },
        )
        await client.message()
        answer = (await client.message())["subscribe"]
        assert answer.get("recovered"), (position, answer)
        found = answer.get("publications", [])
        while len(found) < len(run) - position:
            found.append((await client.message())["push"]["pub"])
        assert [each["offset"] for each in found] == [
            *range(position + 1, len(run) + 1)
        ]
        assert [each["data"] for each in found] == run[position:]
        client.reset()


@pytest.mark.requirement("R44")
async def test_an_sdk_that_is_cut_while_a_run_goes_on_has_all_of_it(
    server: Server, thread: str, start_host: StartHost
) -> None:
    run = made_run(42, 300, thread=thread)
    viewer = await member(await start_host("js-5.8.0"), server, "ann", thread)
    for count, begin in enumerate(range(0, len(run), 25), 1):
        await viewer.seen("subscribed", count)
        await viewer.cut()
        await push(server, thread, "r", run[begin : begin + 25], begin + 1)
    channel = f"thread:{thread}"
    await viewer.until(
        lambda: len([o for o in viewer.offsets(channel) if o]) >= len(run), "the run"
    )
    found = [each for each in viewer.publications(channel) if each["offset"]]
    assert [each["offset"] for each in found] == list(range(1, len(run) + 1))
    assert [each["data"] for each in found] == run


@pytest.mark.slow
@pytest.mark.requirement("L1", "R44")
async def test_fifty_users_with_three_sockets_see_their_own_runs_alone(
    server: Server, start_host: StartHost
) -> None:
    host = await start_host("js-5.8.0")
    # tests/e2e/test_token_refresh.py has all of them at a gateway, one after the other.
    users = [f"user{number}" for number in range(int(50 * server.load))]

    async def join(user: str) -> list[SdkClient]:
        return [await member(host, server, user, f"own#{user}") for _ in range(3)]

    joined = await asyncio.gather(*map(join, users))
    clients = dict(zip(users, joined, strict=True))
    runs = {
        user: [
            started(f"run-{user}", f"own#{user}"),
            *words(f"for {user} ", "alone", message=f"m-{user}"),
            finished(f"run-{user}", f"own#{user}"),
        ]
        for user in users
    }
    await asyncio.gather(
        *(push(server, f"own#{user}", f"run-{user}", runs[user]) for user in users)
    )
    for user in users:
        for client in clients[user]:
            await client.seen("publication", 6)
            seen = [each["data"] for each in client.events["publication"]]
            assert seen == runs[user]
    stranger = await SdkClient.create(
        host, server.url, token=tokens.connection("stranger")
    )
    await stranger.connect()
    await stranger.do("subscribe", channel="thread:own#user1")
    [refusal] = await stranger.seen("unsubscribed", 1)
    assert refusal["code"] == 103 and not stranger.events["publication"]


async def notices(client: SdkClient, count: int) -> list[tuple[str, str]]:
    await client.seen("publication", count)
    events = [each["data"] for each in client.events["publication"]]
    return [(each["name"], each["value"]["user"]) for each in events]


@pytest.mark.requirement("R42")
async def test_typing_reaches_the_other_members_and_ends_with_the_connection(
    server: Server, thread: str, start_host: StartHost
) -> None:
    host = await start_host("js-5.8.0")
    ann = await member(host, server, "ann", thread)
    tablet = await member(host, server, "ann", thread)
    bob = await member(host, server, "bob", thread)
    asked = {"thread": thread, "typing": True}
    for _ in range(3):  # said again at once, it is told once
        await ann.rpc("typing", asked)
    assert await notices(bob, 1) == [("typing_started", "ann")]
    await ann.rpc("typing", {**asked, "typing": False})
    assert (await notices(bob, 2))[1:] == [("typing_stopped", "ann")]
    await ann.rpc("typing", asked)
    await ann.disconnect()
    assert (await notices(bob, 4))[2:] == [
        ("typing_started", "ann"),
        ("typing_stopped", "ann"),
    ]
    await bob.rpc("typing", asked)
    assert await notices(tablet, 1) == [("typing_started", "bob")]
    assert len(bob.events["publication"]) == 4
    history = await bob.history(f"thread:{thread}", limit=10)
    assert history["publications"] == []
    stranger = await SdkClient.create(host, server.url, token=tokens.connection("eve"))
    await stranger.connect()
    with pytest.raises(SdkError) as refused:
        await stranger.rpc("typing", asked)
    assert refused.value.code == 103


@pytest.mark.slow
@pytest.mark.requirement("R42", "R44")
async def test_typing_stops_by_itself_and_a_live_run_is_never_silent(
    server: Server, thread: str, start_host: StartHost
) -> None:
    host = await start_host("js-5.8.0")
    ann = await member(host, server, "ann", thread)
    bob = await member(host, server, "bob", thread)
    await ann.rpc("typing", {"thread": thread})
    assert await notices(bob, 2) == [
        ("typing_started", "ann"),
        ("typing_stopped", "ann"),
    ]
    await push(server, thread, "r", [started("r", thread)])
    await bob.until(
        lambda: (
            "steadwire.keepalive"
            in [each["data"].get("name") for each in bob.events["publication"]]
        ),
        "a keep-alive",
    )
    await push(server, thread, "r", [started("r", thread), finished("r", thread)])


@pytest.mark.requirement("R44", "L1")
async def test_a_member_cancels_a_run_and_a_stranger_does_not(
    server: Server, thread: str, start_host: StartHost
) -> None:
    host = await start_host("js-5.8.0")
    ann = await member(host, server, "ann", thread)
    await push(server, thread, "r", [started("r", thread), *words("a", "b")[:2]])
    stranger = await SdkClient.create(host, server.url, token=tokens.connection("eve"))
    await stranger.connect()
    asked = {"thread": thread, "run": "r"}
    for client, data, code in [
        (stranger, asked, 103),
        (ann, {"thread": thread}, 107),
        (ann, {"thread": "", "run": "r"}, 107),
    ]:
        with pytest.raises(SdkError) as refused:
            await client.rpc("run.cancel", data)
        assert refused.value.code == code
    with pytest.raises(SdkError) as refused:
        await ann.rpc("another", {})
    assert refused.value.code == 108
    assert await ann.rpc("run.cancel", {"thread": thread, "run": "x"}) == {
        "cancelled": False
    }
    assert await ann.rpc("run.cancel", asked) == {"cancelled": True}
    await ann.seen("publication", 5)
    seen = [each["data"] for each in ann.events["publication"]]
    assert seen[3:] == [
        words()[1],
        {**finished("r", thread), "outcome": {"type": "cancelled"}},
    ]
    assert await ann.rpc("run.cancel", asked) == {"cancelled": False}


@pytest.mark.requirement("R41", "L18")
async def test_only_runs_publish_in_threads(
    server: Server, thread: str, start_host: StartHost, api: Api
) -> None:
    ann = await member(await start_host("js-5.8.0"), server, "ann", thread)
    with pytest.raises(SdkError) as refused:
        await ann.publish(f"thread:{thread}", {"type": "RUN_STARTED"})
    assert refused.value.code == 108
    with pytest.raises(ApiError) as error:
        await api.call("publish", {"channel": f"thread:{thread}", "data": {}})
    assert error.value.code == 108
    own = json.loads(text_of(started("r", thread)))
    await push(server, thread, "r", [own, finished("r", thread)])
    assert [each["data"]["type"] for each in await ann.seen("publication", 2)] == [
        "RUN_STARTED",
        "RUN_FINISHED",
    ]

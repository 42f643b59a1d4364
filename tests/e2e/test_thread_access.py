"""Who may view a thread over HTTP, run an agent there, and for how long."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.harness import tokens
from tests.harness.agents import (
    Agent,
    Answer,
    agent_settings,
    run_input,
    said,
    viewing,
)
from tests.harness.api import Api
from tests.harness.fixtures import server_with
from tests.harness.ports import free_port
from tests.harness.server import Server

PORT = free_port()

server = server_with(
    tokens.settings(
        **agent_settings(PORT),
        STEADWIRE_CLIENT_EXPIRED_CLOSE_DELAY="0.2",
        STEADWIRE_CONNECTIONS_USER_LIMIT="1",
    )
)


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with Agent.start(PORT) as agent:
        agent.says("hello")
        yield agent


@pytest.fixture
def thread(thread: str) -> str:
    """Return a thread of the user ann, and of nobody else."""
    return f"{thread[:80]}#ann"


def path_of(thread: str, what: str = "events") -> str:
    return f"/agui/threads/{thread.replace('#', '%23')}/{what}"


def events_of(server: Server, thread: str, user: str, query: str = "") -> Any:
    token = tokens.connection(user)
    return viewing(server, path_of(thread) + query, token=token)


async def request(
    server: Server, method: str, path: str, token: str = "", **options: Any
) -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    client = httpx.AsyncClient(trust_env=False, timeout=30.0)
    # In all: a stream that is wrongly shown has something to read for ever.
    async with client, asyncio.timeout(30.0):
        url = f"http://127.0.0.1:{server.port}{path}"
        return await client.request(
            method, url, headers=headers | options.pop("headers", {}), **options
        )


async def test_without_credentials_nothing_is_shown(
    agent: Agent, server: Server, thread: str
) -> None:
    paths = [("GET", path_of(thread)), ("GET", path_of(thread, "snapshot"))]
    paths += [("POST", "/agui/helper"), ("POST", "/agui/helper/runs/r/cancel")]
    good = tokens.connection("ann")
    for method, path in paths:
        for token, code in [
            ("", "unauthorized"),
            ("x.y.z", "unauthorized"),
            (tokens.connection("ann", seconds=-100), "token_expired"),
            ("tkt_x", "unauthorized"),
        ]:
            answer = await request(server, method, path, token)
            assert answer.status_code == 401, (path, token)
            assert answer.json()["error"]["code"] == code, (path, token)
        # A token in a URL would be in the logs of proxies.
        answer = await request(server, method, f"{path}?ticket={good}")
        assert answer.status_code == 401
    assert not agent.answers


@pytest.mark.requirement("L1")
async def test_a_run_reaches_those_who_may_read_its_thread(
    agent: Agent, server: Server, thread: str
) -> None:
    """The input names another user; the token decides."""
    asked = run_input(thread, "r1", forwardedProps={"user": "bob"})
    ann, bob = tokens.connection("ann"), tokens.connection("bob")
    run = {"method": "POST", "json": asked}
    async with viewing(server, "/agui/helper", token=ann, **run) as view:
        events = await view.all()
    assert events[-1].type == "RUN_FINISHED"
    for method, path, body in [
        ("GET", path_of(thread), None),
        ("GET", path_of(thread, "snapshot"), None),
        ("POST", "/agui/helper", run_input(thread, "r2")),
        ("POST", "/agui/helper", asked),
        ("POST", f"/agui/helper/runs/r1/cancel?thread={thread[:-4]}%23ann", None),
    ]:
        answer = await request(server, method, path, bob, json=body)
        assert answer.status_code == 403, path
        assert answer.json()["error"]["code"] == "permission_denied"
    assert len(agent.answers) == 1
    async with events_of(server, thread, "ann", "?after=0") as view:
        assert [await view.next() for _ in events] == events


async def test_the_same_run_id_is_another_run_in_another_thread(
    agent: Agent, server: Server, thread: str
) -> None:
    """A cancel without a thread finds the visitor's own run, and no other."""
    other = thread.replace("#ann", "#bob")

    async def script(answer: Answer) -> None:
        await answer.send(said("r1", [], answer.input["threadId"])[0])
        await answer.silence()

    agent.script = script
    ann, bob, eve = (tokens.connection(user) for user in ("ann", "bob", "eve"))
    cancel = "/agui/helper/runs/r1/cancel"

    def run(token: str, name: str) -> Any:
        body = run_input(name, "r1")
        return viewing(server, "/agui/helper", method="POST", token=token, json=body)

    async with run(ann, thread) as own, run(bob, other) as others:
        await own.next()
        await others.next()
        assert (await request(server, "POST", cancel, eve)).status_code == 404
        assert (await request(server, "POST", cancel, bob)).status_code == 200
        [end] = await others.all()
        assert end.fields["outcome"] == {"type": "cancelled"}
        assert (await request(server, "POST", cancel, ann)).status_code == 200
        assert [event.type for event in await own.all()] == ["RUN_FINISHED"]


async def test_a_ticket_is_good_for_one_request(
    agent: Agent, server: Server, api: Api, thread: str
) -> None:
    ticket = (await api.call("ticket", {"user": "ann"}))["ticket"]
    path = path_of(thread, "snapshot")
    assert (await request(server, "GET", path, ticket)).status_code == 200
    assert (await request(server, "GET", path, ticket)).status_code == 401
    ticket = (await api.call("ticket", {"user": "ann"}))["ticket"]
    assert (await request(server, "GET", f"{path}?ticket={ticket}")).status_code == 200
    assert (await request(server, "GET", f"{path}?ticket={ticket}")).status_code == 401


async def test_a_thread_that_the_token_names_is_open_to_it(
    agent: Agent, server: Server, thread: str
) -> None:
    name = thread.replace("#ann", "")
    plain = tokens.connection("bob")
    path = path_of(name, "snapshot")
    assert (await request(server, "GET", path, plain)).status_code == 403
    named = tokens.connection("bob", channels=[f"thread:{name}"])
    assert (await request(server, "GET", path, named)).status_code == 200


async def test_an_expired_token_ends_the_stream(
    agent: Agent, server: Server, thread: str
) -> None:
    for seconds in (1.5, 6.0, 24.0):  # or longer, where a machine stalls
        token = tokens.connection("ann", seconds=seconds)
        async with viewing(server, path_of(thread), token=token) as view:
            if view.status == 200:
                assert await view.all() == []
                break
    else:
        pytest.fail("the stream did not open before the token had expired")
    assert (await request(server, "GET", path_of(thread), token)).status_code == 401


@pytest.mark.parametrize("how", ["token", "user", "disconnect", "unsubscribe"])
async def test_the_server_api_ends_streams(
    agent: Agent, server: Server, api: Api, thread: str, how: str
) -> None:
    user = f"user-{how}"
    other, thread = thread.replace("#ann", "#bob"), thread.replace("#ann", f"#{user}")
    token = tokens.connection(user, jti=f"id-{how}", iat=time.time() - 5)
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "token": ("revoke_token", {"uid": f"id-{how}"}),
        "user": ("invalidate_user_tokens", {"user": user}),
        "disconnect": ("disconnect", {"user": user}),
        "unsubscribe": (
            "unsubscribe",
            {"user": user, "channel": f"thread:{thread}"},
        ),
    }
    async with (
        events_of(server, other, "bob") as stays,
        viewing(server, path_of(thread), token=token) as view,
    ):
        await api.call(*calls[how])
        assert await view.all() == []
        bob = tokens.connection("bob")
        body = run_input(other, how)
        async with viewing(
            server, "/agui/helper", method="POST", token=bob, json=body
        ) as run:
            events = await run.all()
        assert await stays.until("RUN_FINISHED") == events


async def test_a_user_has_so_many_streams(
    agent: Agent, server: Server, thread: str
) -> None:
    """Four for each connection that a user may have, which is one here."""
    open_ones: list[Any] = []
    try:
        for _ in range(4):
            view = events_of(server, thread, "ann")
            open_ones.append(view)
            assert (await view.__aenter__()).status == 200
        async with events_of(server, thread, "ann") as refused:
            assert refused.status == 429
            assert refused.json["error"]["temporary"] is True
            assert refused.response.headers["retry-after"] == "1"
        other = thread.replace("#ann", "#bob")
        async with events_of(server, other, "bob") as others:
            assert others.status == 200
        await open_ones.pop().__aexit__(None, None, None)
        async with asyncio.timeout(10):
            while True:
                async with events_of(server, thread, "ann") as again:
                    if again.status == 200:
                        break
    finally:
        for view in open_ones:
            await view.__aexit__(None, None, None)


async def test_fifty_users_see_their_own_runs_alone(
    agent: Agent, server: Server
) -> None:
    """Each with three streams: none of them has an event of another's."""

    async def one(user: str) -> None:
        name, token = f"fifty#{user}", tokens.connection(user)
        async with (
            viewing(server, path_of(name), token=token) as a,
            viewing(server, path_of(name), token=token) as b,
            viewing(
                server,
                "/agui/helper",
                method="POST",
                token=token,
                json=run_input(name, f"run-{user}"),
            ) as run,
        ):
            events = await run.all()
            assert {e.fields.get("threadId", name) for e in events} == {name}
            expected = said(f"run-{user}", ["hello"], name)
            assert [event.fields for event in events] == expected
            for view in (a, b):
                found = await view.until("RUN_FINISHED")
                assert [event.fields for event in found] == expected

    await asyncio.gather(*[one(f"user{n}") for n in range(50)])


async def test_secrets_are_in_no_log(
    agent: Agent, make_server: Callable[..., Server], thread: str
) -> None:
    secret = "s3cret-of-the-agent"
    own = await make_server(
        tokens.settings(
            **agent_settings(PORT, headers={"Authorization": f"Bearer {secret}"}),
            STEADWIRE_LOG_LEVEL="debug",
        )
    ).start()
    ann = tokens.connection("ann")
    agent.status = 500
    body = run_input(thread, "r1", messages=[])
    async with viewing(
        own, "/agui/helper", method="POST", token=ann, json=body
    ) as view:
        assert [event.type for event in await view.all()] == [
            "RUN_STARTED",
            "RUN_ERROR",
        ]
    await own.logged("an agent was lost")
    output = own.output()
    assert secret not in output and ann not in output
    assert json.dumps("helper") in output

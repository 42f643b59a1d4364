"""Runs over two servers on one DynamoDB table: seen on both, and ended by either."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from tests.agents.runs import finished, started, text_of, words
from tests.harness.agents import Agent, Answer, agent_settings, run_input, viewing
from tests.harness.api import Api
from tests.harness.backends import BACKENDS
from tests.harness.proxies import free_port
from tests.harness.server import Server

PORT = free_port()


@pytest.fixture
def make_node(make_server: Callable[..., Server]) -> Callable[[], Server]:
    shared = BACKENDS["dynamodb"]()
    return lambda: make_server({**shared, **agent_settings(PORT)})


async def push(server: Server, first: int, *events: dict[str, object]) -> int:
    url = f"http://127.0.0.1:{server.port}/api/runs/pushed/r/events?from={first}"
    headers = {"X-API-Key": server.key, "Content-Type": "application/x-ndjson"}
    body = "".join(f"{text_of(each)}\n" for each in events)
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
        answer = await client.post(url, content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    number: int = answer.json()["next"]
    return number


@pytest.mark.slow
@pytest.mark.requirement("R44", "L18")
async def test_a_server_ends_the_runs_of_one_that_was_killed(
    make_node: Callable[[], Server],
) -> None:
    one, two = await make_node().start(), await make_node().start()
    socket, _ = await two.join("thread:t")

    async def script(answer: Answer) -> None:
        await answer.send(started(), *words("a", "b")[:3])
        await answer.silence()

    async with Agent.start(PORT) as agent:
        agent.script = script
        asked = run_input("t", "r")
        async with (
            viewing(two, "/agui/threads/t/events?after=0") as viewer,
            viewing(one, "/agui/helper", method="POST", json=asked) as own,
        ):
            begin = [await own.next() for _ in range(4)]
            assert [await viewer.next() for _ in range(4)] == begin
            one.kill9()
            rest = await viewer.until("RUN_ERROR")
        assert [each.fields["code"] for each in rest] == ["agent_lost"]
        async with viewing(two, "/agui/helper", method="POST", json=asked) as again:
            assert await again.all() == [*begin, *rest]
        assert len(agent.answers) == 1
    # Sockets get the events of another server, too; keep-alives have no offset.
    found = []
    while len(found) < 5:
        pub = (await socket.message(30.0)).get("push", {}).get("pub", {})
        if "offset" in pub:
            found.append(pub["offset"])
    assert found == [1, 2, 3, 4, 5]
    await one.start()
    async with viewing(one, "/agui/threads/t/events?after=0") as view:
        assert [await view.next() for _ in range(5)] == [*begin, *rest]


@pytest.mark.slow
@pytest.mark.requirement("R44", "L18")
async def test_an_agent_that_pushes_goes_on_at_another_server(
    make_node: Callable[[], Server],
) -> None:
    one, two = await make_node().start(), await make_node().start()
    run = [
        started(thread="pushed"),
        *words(*"abcdef"),
        finished(thread="pushed"),
    ]
    assert await push(one, 1, *run[:4]) == 5
    one.kill9()
    # It is not sure of the last two: they are passed over.
    assert await push(two, 3, *run[2:6]) == 7
    await one.start()
    assert await push(one, 7, *run[6:]) == len(run) + 1
    for server in (one, two):
        async with viewing(server, "/agui/threads/pushed/events?after=0") as view:
            assert [each.fields for each in await view.until("RUN_FINISHED")] == run
    async with Api(one.port, one.key) as api:
        history = await api.call("history", {"channel": "thread:pushed", "limit": 50})
    assert [each["data"] for each in history["publications"]] == run


@pytest.mark.slow
@pytest.mark.requirement("R44", "B127")
async def test_a_run_of_another_server_is_cancelled_without_its_thread(
    make_node: Callable[[], Server],
) -> None:
    one, two = await make_node().start(), await make_node().start()

    async def script(answer: Answer) -> None:
        await answer.send(started(), words("a")[0])
        await answer.silence()

    async def cancel(server: Server, agent: str) -> httpx.Response:
        url = f"http://127.0.0.1:{server.port}/agui/{agent}/runs/r/cancel"
        async with httpx.AsyncClient(trust_env=False) as client:
            return await client.post(url)

    async with Agent.start(PORT) as agent:
        agent.script = script
        asked = run_input("t", "r")
        async with viewing(one, "/agui/helper", method="POST", json=asked) as own:
            await own.until("TEXT_MESSAGE_START")
            answer = await cancel(two, "helper")
            assert (answer.status_code, answer.json()) == (200, {"cancelled": True})
            [*_, end] = await own.all()
            await agent.answers[0].closed.wait()
        assert end.fields["outcome"] == {"type": "cancelled"}
        for server in (one, two):
            answer = await cancel(server, "helper")
            assert answer.json()["error"]["code"] == "run_unknown"

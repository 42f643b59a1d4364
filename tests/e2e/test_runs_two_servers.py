"""Runs over two servers on one store: seen on both, and ended by either."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.agents.runs import finished, started, text_of, words
from tests.harness.agents import Agent, Answer, agent_settings, run_input, viewing
from tests.harness.api import Api
from tests.harness.backends import BACKENDS
from tests.harness.ports import free_port
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
@pytest.mark.parametrize("store", ["dynamodb", "sqlite"])
async def test_a_run_of_another_server_is_cancelled_in_every_way(
    make_server: Callable[..., Server], tmp_path: Path, store: str
) -> None:
    shared = {
        "dynamodb": BACKENDS["dynamodb"],
        "sqlite": lambda: {
            "STEADWIRE_STORE_PATH": str(tmp_path / "shared.db"),
            "STEADWIRE_STORE_SHARED_BY": "tests",
        },
    }[store]()
    settings = {**shared, **agent_settings(PORT)}
    one, two = [await make_server(settings).start() for _ in range(2)]
    member, _ = await two.join("thread:t-rpc")

    async def script(answer: Answer) -> None:
        thread = answer.input["threadId"]
        await answer.send(started("r", thread), words("a")[0])
        await answer.silence()

    async def by_http(server: Server, path: str) -> httpx.Response:
        url = f"http://127.0.0.1:{server.port}/agui{path}"
        async with httpx.AsyncClient(trust_env=False, timeout=30.0) as client:
            return await client.post(url)

    async def cancel(thread: str, path: str) -> None:
        """Run an agent at one server, and cancel it at the other."""
        asked = run_input(thread, "r")
        async with viewing(one, "/agui/helper", method="POST", json=asked) as own:
            await own.until("TEXT_MESSAGE_START")
            if path:
                answer = await by_http(two, path)
                assert (answer.status_code, answer.json()) == (200, {"cancelled": True})
            else:
                data = {"thread": thread, "run": "r"}
                await member.send(
                    {"id": 9, "rpc": {"method": "run.cancel", "data": data}}
                )
                while (reply := await member.message(30.0)).get("id") != 9:
                    pass
                assert reply["rpc"]["data"] == {"cancelled": True}
            [*_, end] = await own.all()
        assert end.fields["outcome"] == {"type": "cancelled"}
        # Once, and everywhere.
        for server in (one, two):
            events = f"/agui/threads/{thread}/events?after=0"
            async with viewing(server, events) as view:
                found = await view.until("RUN_FINISHED")
            assert [each.type for each in found] == [
                "RUN_STARTED",
                "TEXT_MESSAGE_START",
                "TEXT_MESSAGE_END",
                "RUN_FINISHED",
            ]
            again = await by_http(server, f"/helper/runs/r/cancel?thread={thread}")
            assert again.json() == {"cancelled": False}

    async with Agent.start(PORT) as agent:
        agent.script = script
        # One after the other where the run's id alone says which is meant.
        await cancel("t", "/helper/runs/r/cancel")
        await asyncio.gather(
            cancel("t-agent", "/helper/runs/r/cancel?thread=t-agent"),
            cancel("t-thread", "/threads/t-thread/runs/r/cancel"),
            cancel("t-rpc", ""),
        )
        for answer in agent.answers:
            await answer.closed.wait()
        assert len(agent.answers) == 4
    for server in (one, two):
        unknown = await by_http(server, "/helper/runs/r/cancel")
        assert unknown.json()["error"]["code"] == "run_unknown"

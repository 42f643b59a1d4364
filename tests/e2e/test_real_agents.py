"""Agents and clients that nobody here wrote: Pydantic AI, and AG-UI's own HttpAgent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness.agents import Event, agent_settings, run_input, text_of, viewing
from tests.harness.agui import Judge, started_judge
from tests.harness.fixtures import server_with
from tests.harness.ports import free_port
from tests.harness.process import TOOLS, environment, launched
from tests.harness.server import Server
from tests.harness.tools import node

pytest.importorskip("pydantic_ai", reason="pydantic-ai-slim[ag-ui] is not installed")

WORDS = 2000
TEXT = "".join(f"word{n} " for n in range(WORDS))
PORT = free_port()
HARNESS = Path(__file__).parents[1] / "harness"

server = server_with(agent_settings(PORT))


class PydanticAgent:
    """The agent's process, which can be killed and started again."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            launched(
                sys.executable,
                "-m",
                "tests.harness.pydantic_agent",
                str(PORT),
                str(WORDS),
            ),
            env=environment({}),
            cwd=HARNESS.parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="module")
def agent() -> Iterator[PydanticAgent]:
    agent = PydanticAgent()
    agent.start()
    yield agent
    agent.kill()


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with started_judge() as judge:
        yield judge


def asked(thread: str, run: str, text: str = "find it") -> dict[str, Any]:
    message = {"id": f"u-{run}", "role": "user", "content": text}
    return run_input(thread, run, messages=[message])


async def http_agent(server: Server, thread: str, run: str) -> dict[str, Any]:
    """Run the agent with npm's HttpAgent, unmodified."""
    url = f"http://127.0.0.1:{server.port}/agui/helper"
    process = await asyncio.create_subprocess_exec(
        *launched(
            node("@ag-ui/client"),
            HARNESS / "httpagent.mjs",
            TOOLS,
            url,
            thread,
            run,
            "find it",
        ),
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    found: dict[str, Any] = json.loads(output)
    return found


def fields(events: list[Event]) -> list[dict[str, Any]]:
    return [event.fields for event in events]


@pytest.mark.requirement("R41", "R44")
async def test_http_agent_runs_a_pydantic_agent_through_the_relay(
    agent: PydanticAgent, server: Server, judge: Judge, thread: str
) -> None:
    found = await http_agent(server, thread, "r1")
    assert found["failed"] == []
    assert found["messages"][-1]["content"] == TEXT
    calls = [
        call["function"]["arguments"]
        for message in found["messages"]
        for call in message.get("toolCalls", [])
    ]
    assert calls == ['{"place": "here"}', '{"place": "there"}']
    answers = [m["content"] for m in found["messages"] if m["role"] == "tool"]
    assert answers == ["nothing here", "nothing there"]
    kinds = {event["type"] for event in found["events"]}
    assert {"REASONING_MESSAGE_CONTENT", "TOOL_CALL_ARGS"} <= kinds
    # Later viewers get the whole thread, compacted, or join it where it is.
    path = f"/agui/threads/{thread}/events"
    streams = []
    for query in ("", "?from=now"):
        async with viewing(server, path + query) as view:
            streams.append(fields(await view.until("RUN_FINISHED")))
    assert judge.verify(streams) == [None, None]
    for reduced in judge.reduce(streams):
        assert reduced["messages"][-1]["content"] == TEXT
    assert len(found["events"]) > WORDS


@pytest.mark.slow
async def test_a_join_at_any_event_is_what_the_client_accepts(
    agent: PydanticAgent, server: Server, judge: Judge, thread: str
) -> None:
    """Viewers that join one after the other while the run goes on."""
    begun: list[Any] = []
    async with contextlib.AsyncExitStack() as stack:
        run = await stack.enter_async_context(
            viewing(server, "/agui/helper", method="POST", json=asked(thread, "r1"))
        )
        whole: list[Event] = []
        while not whole or whole[-1].type != "RUN_FINISHED":
            event = await run.next()
            assert event is not None
            whole.append(event)
            kinds = {each.type for each in whole}
            new = event.type not in {each.type for each in whole[:-1]}
            if new or (len(whole) % 200 == 0 and kinds):
                path = f"/agui/threads/{thread}/events?from=now"
                begun.append(await stack.enter_async_context(viewing(server, path)))
        streams = [fields(await view.until("RUN_FINISHED")) for view in begun]
    assert len(streams) > 12
    assert judge.verify([fields(whole), *streams]) == [None] * (len(streams) + 1)
    for reduced in judge.reduce(streams):
        assert reduced["failed"] == []
        assert reduced["messages"][-1]["content"] == TEXT


@pytest.mark.requirement("R44")
async def test_an_agent_that_is_killed_is_lost_and_the_stream_is_accepted(
    agent: PydanticAgent, server: Server, judge: Judge, thread: str
) -> None:
    question = asked(thread, "r1", "stop half way")
    try:
        async with viewing(server, "/agui/helper", method="POST", json=question) as run:
            begin = [await run.next() for _ in range(60)]
            agent.kill()
            events = [event for event in begin if event] + await run.all()
    finally:
        agent.start()
    assert events[-1].type == "RUN_ERROR" and events[-1].fields["code"] == "agent_lost"
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    path = f"/agui/threads/{thread}/events"
    streams = [fields(events)]
    for query in ("", "?from=now"):
        async with viewing(server, path + query) as view:
            streams.append(fields(await view.until("RUN_ERROR")))
    assert judge.verify(streams) == [None] * 3
    found = await http_agent(server, thread, "r2")
    assert found["failed"] == [] and found["messages"][-1]["content"] == TEXT


@pytest.mark.slow
async def test_a_viewer_that_is_cut_off_and_joins_has_the_same_text(
    agent: PydanticAgent, server: Server, thread: str
) -> None:
    async with viewing(
        server, "/agui/helper", method="POST", json=asked(thread, "r1")
    ) as run:
        found = [event for _ in range(100) if (event := await run.next())]
    path = f"/agui/threads/{thread}/events"
    with contextlib.suppress(httpx.HTTPError):
        while found[-1].type != "RUN_FINISHED":
            last = {"Last-Event-ID": str(found[-1].id)}
            async with viewing(server, path, headers=last) as view:
                for _ in range(150):
                    event = await view.next()
                    assert event is not None
                    found.append(event)
                    if event.type == "RUN_FINISHED":
                        break
    assert list(text_of(found).values())[-1] == TEXT
    assert [event.id for event in found] == list(range(1, len(found) + 1))

"""Runs through the relay: any client of AG-UI, any agent, on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from tests.harness.agents import (
    Agent,
    Event,
    run_input,
    said,
    viewing,
)
from tests.harness.server import Server

WORDS = [f"word{n} " for n in range(40)]


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with Agent.start() as agent:
        yield agent


@pytest.fixture
async def server(agent: Agent, make_server: Callable[..., Server]) -> Server:
    return await make_server(agent.settings(headers={"X-Secret": "s3cret"})).start()


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


async def test_a_run_is_relayed_with_offsets_and_stays_in_the_thread(
    agent: Agent, server: Server
) -> None:
    agent.says(*WORDS)
    asked = run_input("t", "r1")
    async with viewing(server, "/agui/helper", method="POST", json=asked) as run:
        events = await run.all()
        assert run.response.headers["content-type"] == "text/event-stream"
    assert [event.fields for event in events] == said("r1", WORDS, "t")
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert agent.answers[0].input == asked
    assert agent.answers[0].headers["x-secret"] == "s3cret"
    async with viewing(server, "/agui/threads/t/events?after=0") as again:
        assert [await again.next() for _ in events] == events

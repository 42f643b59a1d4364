"""`service.agents.Run`: the end of the block is the end of the run, however it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from ag_ui.core import TextMessageContentEvent

from service.agents import Run
from service.agents.errors import Refused, RunExists
from tests.agents.fakes import World, terminals
from tests.agents.runs import event, finished, started, words

CANCELLED = {**finished(), "outcome": {"type": "cancelled"}}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    yield World()


@pytest.mark.requirement("R44")
async def test_a_block_that_ends_finishes_its_run(world: World) -> None:
    said = {"id": "u", "role": "user", "content": "?"}
    async with Run(world.process(), "t", "r", messages=[said]) as run:
        assert await run.say("a", "b") == "r-1"
        await run.send(event("STEP_STARTED", stepName="s"))
    events = world.store.events()
    assert events[0]["input"]["messages"] == [said]
    assert events[1:] == [
        *words("a", "b", message="r-1"),
        event("STEP_STARTED", stepName="s"),
        event("STEP_FINISHED", stepName="s"),
        finished(),
    ]


@pytest.mark.requirement("R44")
async def test_a_block_may_send_its_own_end(world: World) -> None:
    async with Run(world.process(), "t", "r") as run:
        await run.send({**finished(), "result": 42})
        with pytest.raises(Refused, match="run_over"):
            await run.say("late")
    assert world.store.events() == [started(), {**finished(), "result": 42}]


@pytest.mark.requirement("R44")
async def test_events_are_json_mappings_or_models(world: World) -> None:
    async with Run(world.process(), "t", "r") as run:
        await run.send('{"type":"TEXT_MESSAGE_START","messageId":"m"}')
        await run.send(TextMessageContentEvent(message_id="m", delta="x"))
        await run.send(words()[1])
    assert world.store.events()[2] == words("x")[1]


@pytest.mark.requirement("R44", "B128")
async def test_an_exception_fails_the_run_without_its_text(world: World) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Run(world.process(), "t", "r") as run:
            await run.send(words()[0])
            _ = 1 // 0
    failed = {
        "type": "RUN_ERROR",
        "message": "ZeroDivisionError",
        "code": "agent_failed",
    }
    assert world.store.events() == [started(), words()[0], failed]


@pytest.mark.requirement("R44")
async def test_a_cancelled_block_cancels_its_run(world: World) -> None:
    begun = asyncio.Event()

    async def agent() -> None:
        async with Run(world.process(), "t", "r") as run:
            await run.send(words()[0])
            begun.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(agent())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.store.events() == [started(), *words(), CANCELLED]


@pytest.mark.requirement("R44")
async def test_a_run_that_somebody_cancels_ends_its_block_quietly(world: World) -> None:
    begun, after = asyncio.Event(), []
    threads = world.process()

    async def agent() -> None:
        async with Run(threads, "t", "r"):
            begun.set()
            await asyncio.sleep(3600)
        after.append("went on")

    task = asyncio.create_task(agent())
    await begun.wait()
    assert await threads.cancel("t", "r")
    await task
    assert after == ["went on"] and task.cancelling() == 0
    assert world.store.events() == [started(), CANCELLED]


@pytest.mark.requirement("L18")
async def test_a_repeated_start_runs_nothing(world: World) -> None:
    threads = world.process()
    async with Run(threads, "t", "r"):
        pass
    with pytest.raises(RunExists):
        async with Run(threads, "t", "r"):
            raise AssertionError("it runs")
    assert terminals(world.store.kinds()) == 1

"""The writer of a run: order, and one terminal event, whatever the store does."""

from __future__ import annotations

import asyncio

import pytest

from service.agents.errors import Refused, RunExists
from service.agents.writer import RunWriter
from service.core.errors import StoreUnavailable
from tests.agents.fakes import World, put, terminals
from tests.agents.runs import event, finished, started, text_of, words

LOST = {"type": "RUN_ERROR", "message": "the agent is gone", "code": "agent_lost"}


async def begun(world: World, **options: float) -> RunWriter:
    threads = world.process()
    await world.settle()
    return await threads.start("t", "r", writes="push", **options)


@pytest.mark.requirement("R44")
async def test_events_that_failed_together_are_repeated_in_their_order() -> None:
    world = World()
    writer = await begun(world)
    world.store.script.extend(["fail"] * 5)
    outcomes = await put(writer, *words("a", "b", "c"))
    await world.settle()
    assert world.store.kinds() == ["RUN_STARTED"]
    await world.pass_time(1)
    assert [await each for each in outcomes] == [2, 3, 4, 5, 6]
    assert world.store.events()[1:] == words("a", "b", "c")


@pytest.mark.requirement("R44", "L18")
async def test_an_event_that_was_stored_though_it_failed_is_not_doubled() -> None:
    world = World()
    writer = await begun(world)
    world.store.script.extend(["ok", "lost", "lost", "fail", "fail"])
    outcomes = await put(writer, *words("a", "a", "c"))
    await world.pass_time(1)
    assert [await each for each in outcomes] == [2, 3, 4, 5, 6]
    assert world.store.events()[1:] == words("a", "a", "c")
    assert (await writer.append(text_of(finished()))) == 7


@pytest.mark.requirement("R44", "L18")
async def test_a_late_first_attempt_and_its_repeat_are_one_event() -> None:
    world = World()
    writer = await begun(world)
    world.store.script.extend(["fail"])
    (outcome,) = await put(writer, words()[0])
    await world.settle()
    # The first attempt arrives after all, before the repeat does.
    world.store.script.extend(["ok", "ok"])
    draft_version = (writer.start << 24) | 1
    world.store.versions["thread:t"] = draft_version
    await world.pass_time(1)
    # The repeat was skipped, and the log has no such event: somebody else was here.
    assert writer.ended.is_set()
    with pytest.raises(Refused, match="run_lost"):
        await writer.put(text_of(words()[1]))
    assert outcome.done()


@pytest.mark.requirement("R44")
async def test_a_hole_in_the_log_ends_the_run_once() -> None:
    world = World()
    writer = await begun(world)
    world.store.script.extend(["ok", "fail", "ok"])
    outcomes = await put(writer, *words("a", "b")[:3])
    await world.pass_time(3)
    assert await outcomes[0] == 2
    with pytest.raises(StoreUnavailable):
        await outcomes[1]
    with pytest.raises(Refused, match="run_lost"):
        await outcomes[2]
    assert world.store.events()[-1] == LOST
    assert terminals(world.store.kinds()) == 1
    assert world.store.state.values == {}


@pytest.mark.requirement("R44")
async def test_a_store_that_fails_for_long_ends_the_run_when_it_is_back() -> None:
    world = World()
    writer = await begun(world)
    world.store.script.extend(["fail"] * 4)
    world.store.read_fails = 10**6
    outcomes = await put(writer, *words("a"))
    await world.pass_time(20)
    assert writer.ended.is_set() and outcomes[0].exception() is not None
    assert terminals(world.store.kinds()) == 0
    world.store.read_fails = 0
    await world.pass_time(3)
    assert world.store.events() == [started(), LOST]


@pytest.mark.requirement("R44")
async def test_at_most_64_events_are_on_their_way() -> None:
    world = World()
    writer = await begun(world)
    world.store.script.append("hold")
    deltas = words(*["x"] * 100)
    await put(writer, *deltas[:64])
    waiting = asyncio.create_task(writer.put(text_of(deltas[64])))
    await world.settle()
    assert not waiting.done() and len(world.store.held) == 64
    world.store.release()
    await world.settle()
    assert waiting.done()
    assert world.store.events()[1:] == deltas[:65]


@pytest.mark.requirement("R44")
async def test_the_lease_ends_a_silent_run_once() -> None:
    world = World()
    writer = await begun(world)
    await put(writer, *words("a")[:2])
    await world.pass_time(29)
    writer.touch()
    await world.pass_time(29)
    assert terminals(world.store.kinds()) == 0
    await world.pass_time(2)
    assert world.store.events()[-1] == LOST
    await world.pass_time(100)
    assert terminals(world.store.kinds()) == 1
    with pytest.raises(Refused, match="run_over"):
        await writer.put(text_of(words("a")[2]))


@pytest.mark.requirement("R44")
async def test_a_slow_store_is_not_a_silent_agent() -> None:
    world = World()
    writer = await begun(world)
    world.store.script.append("hold")
    await put(writer, *words("a"))
    await world.pass_time(60)
    assert terminals(world.store.kinds()) == 0 and not writer.over
    world.store.release()
    await world.pass_time(1)
    assert world.store.events()[1:] == words("a")


@pytest.mark.requirement("R44")
@pytest.mark.parametrize("end", ["lease", "cancel", "fail", "finish"])
async def test_one_end_while_another_is_on_its_way_changes_nothing(end: str) -> None:
    world = World()
    writer = await begun(world)
    world.store.script.append("hold")
    await put(writer, finished())
    match end:
        case "lease":
            await world.pass_time(60)
        case "cancel":
            assert not writer.cancel() and not writer.cancelled.is_set()
        case "fail":
            assert not writer.fail("x", "x")
        case "finish":
            assert not writer.finish()
    world.store.release()
    await world.pass_time(10)
    assert world.store.events() == [started(), finished()]
    assert writer.ended.is_set() and world.store.state.values == {}


@pytest.mark.requirement("R44", "B129")
async def test_a_cancelled_run_is_closed_in_order_and_takes_nothing_more() -> None:
    world = World()
    writer = await begun(world)
    call = {"toolCallId": "c", "toolCallName": "f"}
    await put(
        writer,
        event("STEP_STARTED", stepName="s"),
        words("a")[0],
        event("TOOL_CALL_START", **call),
    )
    await world.settle()
    world.store.script.append("hold")
    (late,) = await put(writer, words("a")[1])
    assert writer.cancel() and not writer.cancel()
    with pytest.raises(Refused, match="run_over"):
        await put(writer, words("a")[1])
    world.store.release()
    await world.settle()
    assert await late == 5
    assert world.store.events()[5:] == [
        words("a")[2],
        event("TOOL_CALL_END", toolCallId="c"),
        event("STEP_FINISHED", stepName="s"),
        {**finished(), "outcome": {"type": "cancelled"}},
    ]


@pytest.mark.requirement("R44")
async def test_what_is_refused_is_not_stored_and_the_run_goes_on() -> None:
    world = World()
    writer = await begun(world)
    for wrong, code in [
        (words()[1], "wrong_order"),
        (finished("another"), "wrong_order"),
        (finished(thread="another"), "wrong_order"),
        (started("another"), "wrong_order"),
        (event("NOTHING"), "invalid_event"),
    ]:
        with pytest.raises(Refused) as refused:
            await writer.put(text_of(wrong))
        assert refused.value.code == code
    await writer.append(text_of(finished()))
    assert world.store.events() == [started(), finished()]


@pytest.mark.requirement("L18")
async def test_the_agents_own_start_of_the_run_is_the_one_that_is_stored() -> None:
    world = World()
    writer = await begun(world)
    assert await writer.append(text_of(started(protocolVersion="1.0"))) == 1
    await put(writer, *words("a"))
    assert await writer.append(text_of(started())) == 1
    assert world.store.kinds().count("RUN_STARTED") == 1


async def test_an_event_over_a_gateways_size_is_refused_alone() -> None:
    world = World()
    threads = world.process(event_size=1000)
    long = text_of(started(input="x" * 1000))
    with pytest.raises(Refused, match="too_large"):
        await threads.start("t", "other", writes="push", started=long)
    writer = await threads.start("t", "r", writes="push")
    await writer.append(text_of(words()[0]))
    with pytest.raises(Refused, match="1000 at most"):
        await writer.put(text_of(words("x" * 1000)[1]))
    await put(writer, *words("a")[1:])
    await writer.append(text_of(finished()))
    assert terminals(world.store.kinds()) == 1


@pytest.mark.requirement("R44")
async def test_a_run_that_is_too_large_is_refused_and_can_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.agents.writer.RUN_SIZE", 20_000)
    world = World()
    writer = await begun(world)
    await writer.append(text_of(words()[0]))
    with pytest.raises(Refused, match="too_large"):
        for _ in range(100):
            await writer.append(text_of(words("x" * 1000)[1]))
    assert writer.fail("too large", "too_large")
    await world.settle()
    assert terminals(world.store.kinds()) == 1


@pytest.mark.requirement("L18")
async def test_a_start_that_is_repeated_starts_nothing() -> None:
    world = World()
    threads = world.process()
    both = await asyncio.gather(
        *(threads.start("t", "r", writes="relay") for _ in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(each, RunWriter) for each in both) == 1
    others = [each for each in both if isinstance(each, RunExists)]
    assert len(others) == 4
    assert {(each.offset, each.live) for each in others} == {(1, True)}
    [writer] = [each for each in both if isinstance(each, RunWriter)]
    await writer.append(text_of(finished()))
    with pytest.raises(RunExists) as exists:
        await threads.start("t", "r", writes="relay")
    assert not exists.value.live
    with pytest.raises(RunExists):
        await world.process("two").start("t", "r", writes="relay")
    assert world.store.kinds() == ["RUN_STARTED", "RUN_FINISHED"]


async def test_a_thread_has_one_live_run() -> None:
    world = World()
    threads = world.process()
    first = await threads.start("t", "r1", writes="relay")
    with pytest.raises(Refused) as refused:
        await threads.start("t", "r2", writes="relay")
    assert refused.value.code == "thread_busy" and refused.value.temporary
    first.finish()
    await world.settle()
    await threads.start("t", "r2", writes="relay")
    assert world.store.kinds() == ["RUN_STARTED", "RUN_FINISHED", "RUN_STARTED"]

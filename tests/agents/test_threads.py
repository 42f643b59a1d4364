"""Runs over processes: who ends what, once, whoever dies when."""

from __future__ import annotations

import asyncio

import pytest

from service.agents import threads as bounds
from service.agents.errors import Refused, RunExists
from service.agents.threads import Threads
from service.agents.writer import RunWriter
from service.core.errors import ReplyError, StoreUnavailable
from service.core.model import Publication, RawJson
from tests.agents.fakes import THREAD, World, put, terminals
from tests.agents.runs import finished, started, text_of, words

CANCELLED = {**finished(), "outcome": {"type": "cancelled"}}
LOST = {"type": "RUN_ERROR", "message": "the agent is gone", "code": "agent_lost"}


@pytest.mark.requirement("R44")
@pytest.mark.parametrize("writes", ["relay", "python"])
async def test_a_restarted_server_ends_what_it_wrote(writes: str) -> None:
    world = World()
    before = world.process("before")
    writer = await before.start("t", "r", writes=writes)  # type: ignore[arg-type]
    await put(writer, *words("a")[:2])
    await world.settle()
    world.kill(before)
    world.process("after")
    await world.settle()
    assert world.store.events() == [started(), *words("a")[:2], LOST]
    assert world.store.state.values == {}
    world.process("again")
    await world.settle()
    assert terminals(world.store.kinds()) == 1


@pytest.mark.requirement("R44")
async def test_an_agent_that_pushes_has_its_lease_to_come_back() -> None:
    world = World()
    before = world.process("before")
    writer = await before.start("t", "r", writes="push")
    await put(writer, *words("a", "b")[:2])
    await world.settle()
    world.kill(before)
    after = world.process("after")
    await world.pass_time(25)
    again = await after.resume("t", "r")
    assert again.offset == 3
    await put(again, *words("a", "b")[2:])
    await world.pass_time(20)
    assert await again.append(text_of(finished())) == 6
    await world.pass_time(100)
    assert world.store.events() == [started(), *words("a", "b"), finished()]


@pytest.mark.requirement("R44")
async def test_an_agent_that_does_not_come_back_is_lost() -> None:
    world = World()
    before = world.process("before")
    await before.start("t", "r", writes="push")
    world.kill(before)
    after = world.process("after")
    await world.pass_time(29)
    assert world.store.events() == [started()]
    await world.pass_time(3)
    assert world.store.events() == [started(), LOST]
    with pytest.raises(Refused, match="run_unknown"):
        await after.resume("t", "r")


@pytest.mark.requirement("R44", "L18")
async def test_an_agent_may_go_on_at_another_server() -> None:
    world = World(shared=True)
    one, two = world.process("one"), world.process("two")
    first = await one.start("t", "r", writes="push")
    await put(first, *words("a", "b")[:2])
    await world.settle()
    second = await two.resume("t", "r")
    assert (second.offset, second.start) == (3, 1)
    await put(second, words("b")[1])
    await world.pass_time(6)
    assert first.stepped_aside and first.ended.is_set()
    for _ in range(4):
        await world.pass_time(20)
        second.touch()
    third = await one.resume("t", "r")
    await put(third, words()[1], finished())
    await world.pass_time(60)
    assert world.store.events() == [started(), *words("a", "b"), finished()]
    assert not await world.store.state.entries("run")


@pytest.mark.requirement("R44")
async def test_another_server_ends_the_runs_of_one_that_died() -> None:
    world = World(shared=True)
    one, two = world.process("one"), world.process("two")
    await one.start("t", "r", writes="relay")
    await world.pass_time(60)  # it lives: nobody touches its runs
    assert world.store.events() == [started()]
    world.kill(one)
    await world.pass_time(14)
    assert world.store.events() == [started()]
    await world.pass_time(8)
    assert world.store.events() == [started(), LOST]
    await world.pass_time(20)
    assert (THREAD in [key for _, key in world.store.state.values]) is False
    assert await two.start("t", "r2", writes="relay")


@pytest.mark.requirement("R44", "L18")
async def test_a_server_that_was_thought_dead_stores_nothing_more() -> None:
    world = World(shared=True)
    one = world.process("one", rounds=False)  # no sign of life after the first
    writer = await one.start("t", "r", writes="relay")
    await put(writer, words("a")[0])
    world.process("two")
    await world.pass_time(30)
    assert world.store.events() == [started(), words("a")[0], LOST]
    late = await put(writer, words("a")[1], words("a")[2], finished())
    await world.pass_time(1)
    for each in late:
        with pytest.raises(Refused, match="run_lost"):
            await each
    assert writer.ended.is_set()
    await world.pass_time(30)
    assert world.store.events() == [started(), words("a")[0], LOST]


@pytest.mark.requirement("R44")
async def test_events_on_their_way_do_not_follow_another_servers_end() -> None:
    world = World(shared=True)
    one = world.process("one", rounds=False)
    writer = await one.start("t", "r", writes="relay")
    world.store.script.append("hold")
    late = await put(writer, *words("a"), finished())
    held, world.store.held = world.store.held, type(world.store.held)()
    world.process("two")
    await world.pass_time(30)
    assert world.store.events() == [started(), LOST]
    for commit in held:
        commit()
    await world.pass_time(10)
    assert world.store.events() == [started(), LOST]
    assert all(isinstance(each.exception(), Refused) for each in late)


@pytest.mark.requirement("R44", "L18", "B127")
async def test_two_servers_that_end_one_run_end_it_once() -> None:
    world = World(shared=True)
    one = world.process("one")
    await one.start("t", "r", writes="relay")
    world.kill(one)
    world.process("two")
    world.process("three")
    await world.pass_time(40)
    assert world.store.events() == [started(), LOST]
    assert not await world.store.state.entries("run")


@pytest.mark.requirement("L18")
async def test_two_servers_start_one_run_once() -> None:
    world = World(shared=True)
    servers = [world.process(str(number)) for number in range(4)]
    both = await asyncio.gather(
        *(server.start("t", "r", writes="relay") for server in servers),
        return_exceptions=True,
    )
    assert sum(isinstance(each, RunWriter) for each in both) == 1
    assert sum(isinstance(each, RunExists) for each in both) == 3
    assert world.store.events() == [started()]


async def test_two_servers_start_two_runs_of_a_thread_one_after_the_other() -> None:
    world = World(shared=True)
    servers = [world.process(str(number)) for number in range(4)]
    both = await asyncio.gather(
        *(
            server.start("t", f"r{number}", writes="relay")
            for number, server in enumerate(servers)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(each, RunWriter) for each in both) == 1
    refused = [each.code for each in both if isinstance(each, Refused)]
    assert refused == ["thread_busy"] * 3
    assert world.store.kinds() == ["RUN_STARTED"]
    [writer] = [each for each in both if isinstance(each, RunWriter)]
    # The entry is that of the run that lives, whoever put one last.
    await world.pass_time(30)
    assert terminals(world.store.kinds()) == 0 and not writer.over
    await writer.append(text_of(finished(writer.run)))
    await world.pass_time(30)
    assert world.store.kinds() == ["RUN_STARTED", "RUN_FINISHED"]


@pytest.mark.requirement("R44")
async def test_a_start_whose_outcome_is_unknown_is_ended() -> None:
    for fault, events in (("fail", []), ("lost", [started(), LOST])):
        world = World()
        threads = world.process()
        await world.settle()
        world.store.script.append(fault)
        with pytest.raises(StoreUnavailable):
            await threads.start("t", "r", writes="relay")
        await world.pass_time(3)
        assert world.store.events() == events
        assert world.store.state.values == {}


async def starting(
    fault: str, writes: str
) -> tuple[World, Threads, asyncio.Task[RunWriter]]:
    """Return a start of the run r in the thread t whose append meets *fault*."""
    world = World()
    threads = world.process()
    await world.settle()
    world.store.script.append(fault)
    task = asyncio.create_task(threads.start("t", "r", writes=writes))
    await world.settle()
    return world, threads, task


@pytest.mark.requirement("R44")
@pytest.mark.parametrize("fault", ["late", "hold"])
async def test_a_start_whose_caller_is_cancelled_is_ended(fault: str) -> None:
    world, threads, task = await starting(fault, "relay")
    task.cancel()
    await world.pass_time(3)
    assert task.cancelled()
    world.store.release()
    await world.pass_time(3)
    assert world.store.events() == [started(), CANCELLED]
    assert world.store.state.values == {}
    await threads.start("t", "r2", writes="relay")


async def test_a_start_of_an_agent_that_pushes_lives_on_without_its_request() -> None:
    world, threads, task = await starting("late", "push")
    task.cancel()
    await world.settle()
    world.store.release()
    await world.pass_time(3)
    await (await threads.resume("t", "r")).append(text_of(finished()))
    assert world.store.events() == [started(), finished()]


@pytest.mark.requirement("R44")
async def test_a_start_under_way_is_ended_by_a_close() -> None:
    world, threads, task = await starting("hold", "python")
    closing = asyncio.create_task(threads.close())
    await world.settle()
    assert not closing.done()
    world.store.release()
    await closing
    assert (await task).ended.is_set()
    assert world.store.events() == [started(), LOST]


@pytest.mark.requirement("R44")
async def test_a_start_that_was_stored_and_cannot_be_read_is_ended() -> None:
    world, _, task = await starting("hold", "relay")
    # Somebody publishes to the thread meanwhile: it is read behind the start.
    world.store.logs[THREAD].append(Publication(1, RawJson("{}"), None))
    world.store.read_fails = 1
    world.store.release()
    with pytest.raises(StoreUnavailable):
        await task
    await world.pass_time(3)
    assert world.store.events() == [{}, started(), LOST]
    assert world.store.state.values == {}


@pytest.mark.requirement("R44")
async def test_a_process_that_dies_after_the_end_leaves_nothing_to_end() -> None:
    world = World()
    before = world.process("before")
    writer = await before.start("t", "r", writes="relay")
    await world.settle()
    world.store.state.fails = 10**6  # so the entry stays
    await writer.append(text_of(finished()))
    await world.settle()
    world.kill(before)
    world.store.state.fails = 0
    assert world.store.state.values
    world.process("after")
    await world.settle()
    assert world.store.events() == [started(), finished()]
    assert world.store.state.values == {}


@pytest.mark.requirement("R44")
async def test_a_process_that_is_closed_ends_its_runs() -> None:
    world = World()
    threads = world.process()
    await threads.start("t", "r", writes="python")
    await threads.close()
    assert world.store.events() == [started(), LOST]
    with pytest.raises(Refused):
        await threads.start("t2", "r", writes="python")


@pytest.mark.requirement("R44")
async def test_an_agent_that_pushes_goes_on_after_a_close() -> None:
    world = World()
    before = world.process("before")
    writer = await before.start("t", "r", writes="push")
    world.store.script.append("hold")
    late = await put(writer, *words("a", "b")[:2])
    closing = asyncio.create_task(before.close())
    await world.settle()
    assert writer.over and not closing.done()  # until what was taken is stored
    with pytest.raises(Refused, match="run_lost"):
        await put(writer, words("a", "b")[2])
    world.store.release()
    await closing
    assert [await each for each in late] == [2, 3]
    after = world.process("after")
    again = await after.resume("t", "r")
    await put(again, *words("a", "b")[2:], finished())
    await world.pass_time(60)
    assert world.store.events() == [started(), *words("a", "b"), finished()]
    assert world.store.state.values == {}


@pytest.mark.requirement("R44")
async def test_an_agent_that_does_not_come_back_after_a_close_is_lost() -> None:
    world = World(shared=True)
    before, _ = world.process("before"), world.process("after")
    await before.start("t", "r", writes="push")
    await world.settle()
    await before.close()
    world.kill(before)
    await world.pass_time(60)
    assert world.store.events() == [started(), LOST]


@pytest.mark.requirement("R44")
async def test_a_run_is_cancelled_from_any_server() -> None:
    world = World(shared=True)
    one, two = world.process("one"), world.process("two")
    writer = await one.start("t", "r", writes="relay")
    assert not await two.cancel("t", "another")
    assert await two.cancel("t", "r")
    await world.pass_time(6)
    assert writer.cancelled.is_set()
    assert world.store.events() == [started(), CANCELLED]
    assert not await one.cancel("t", "r")


async def test_the_threads_of_a_run_are_found_from_any_server() -> None:
    world = World(shared=True)
    one, two = world.process("one"), world.process("two")
    for thread, agent in (("t", "helper"), ("t2", "helper"), ("t3", "other")):
        await one.start(thread, "r", writes="relay", agent=agent)
    writer = await two.start("t4", "r", writes="relay", agent="helper")
    await two.start("t5", "r2", writes="relay", agent="helper")
    await two.start("t6", "r", writes="push")
    for server in (one, two):
        assert sorted(await server.of_run("helper", "r")) == ["t", "t2", "t4"]
        assert await server.of_run("other", "r") == ["t3"]
    await writer.append(text_of(finished(thread="t4")))
    await world.settle()
    assert sorted(await one.of_run("helper", "r")) == ["t", "t2"]


@pytest.mark.requirement("R44", "B124")
async def test_no_gap_is_longer_than_5_seconds_while_a_run_lives() -> None:
    world = World(shared=True)
    one, two = world.process("one"), world.process("two")
    writer = await one.start("t", "r", writes="relay")
    for threads in (one, two):
        notices = world.notices(threads)
        heard = world.clock.now()
        for _ in range(60):
            await world.pass_time(0.5)
            if notices:
                notices.clear()
                heard = world.clock.now()
            assert world.clock.now() - heard <= 5.5  # seen every half a second
    await writer.append(text_of(finished()))
    await world.pass_time(6)
    for threads in (one, two):
        world.notices(threads).clear()
    await world.pass_time(20)
    for threads in (one, two):
        assert world.notices(threads) == []


@pytest.mark.requirement("R44")
async def test_positions_are_checked_every_second_while_another_server_writes() -> None:
    world = World(shared=True)
    one, two = world.process("one"), world.process("two")
    writer = await one.start("t", "r", writes="relay")
    await world.pass_time(6)
    checked = world.machines[two].checked
    checked.clear()
    await world.pass_time(10)
    assert 9 <= len(checked) <= 11 and set(checked) == {THREAD}
    assert world.machines[one].checked == []
    await writer.append(text_of(finished()))
    await world.pass_time(11)
    checked.clear()
    await world.pass_time(10)
    assert checked == []


@pytest.mark.requirement("R44")
async def test_a_run_that_says_something_gets_no_keep_alive() -> None:
    world = World()
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    await put(writer, words()[0])
    for _ in range(20):
        await put(writer, words("x")[1])
        await world.pass_time(2)
    assert world.notices(threads) == []


@pytest.mark.requirement("L1")
async def test_what_is_said_in_a_start_is_stored_once() -> None:
    world = World()
    threads = world.process()
    first = {"id": "1", "role": "user", "content": "a"}
    second = {"id": "2", "role": "user", "content": "b"}
    writer = await threads.start("t", "r1", writes="relay", messages=[first])
    await put(writer, *words("x"))
    await writer.append(text_of(finished("r1")))
    said = {"id": "m", "role": "assistant", "content": "x"}
    await threads.start("t", "r2", writes="relay", messages=[first, said, second])
    inputs = [
        each["input"]["messages"]
        for each in world.store.events()
        if each["type"] == "RUN_STARTED"
    ]
    assert inputs == [[first], [second]]


@pytest.mark.parametrize("thread", ["", "é", "x" * 255])
def test_an_id_that_is_no_channel_is_refused(thread: str) -> None:
    async def check() -> None:
        with pytest.raises(ReplyError) as refused:
            World().process(rounds=False).channel_of(thread)
        assert refused.value.error.code == 107

    asyncio.run(check())


async def test_threads_that_nobody_uses_leave_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.agents.threads.IDLE_MEMORY", 50_000)
    world = World()
    threads = world.process()
    for number in range(20):
        writer = await threads.start(f"t{number}", "r", writes="relay")
        await writer.append(text_of(words()[0]))
        await writer.append(text_of(words("x" * 10_000)[1]))
        writer.finish()
        await world.settle()
    assert 0 < threads.memory <= 50_000
    snapshot = await (await threads.open("t0")).snapshot()
    assert len(snapshot.events) == 5


async def test_a_process_has_so_many_runs_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "RUNS", 2)
    world = World()
    threads = world.process()
    first, _ = [await threads.start(name, "r", writes="relay") for name in ("t", "u")]
    with pytest.raises(Refused) as refused:
        await threads.start("v", "r", writes="relay")
    assert (refused.value.code, refused.value.temporary) == ("too_many_runs", True)
    assert not world.store.logs["thread:v"]  # type: ignore[index]
    await first.append(text_of(finished()))
    await world.settle()
    assert await threads.start("v", "r", writes="relay")


async def test_threads_have_so_much_memory_and_idle_ones_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bounds, "MEMORY", 10_000)
    monkeypatch.setattr(bounds, "IDLE_MEMORY", 6000)
    world = World()
    threads = world.process()
    for name in ("t", "u"):
        writer = await threads.start(name, "r", writes="relay")
        await put(writer, *words("x" * 4000), finished(thread=name))
        await world.settle()
        # The second takes the place of the first, which nobody uses.
        assert 4000 < threads.memory < 6000
    monkeypatch.setattr(bounds, "MEMORY", 4000)
    with pytest.raises(Refused) as refused:
        await threads.start("v", "r", writes="relay")
    assert (refused.value.code, refused.value.temporary) == ("too_many_runs", True)
    monkeypatch.setattr(bounds, "MEMORY", 10_000)
    writer = await threads.start("v", "r", writes="relay")
    await put(writer, *words("x" * 8000)[:2])
    await world.settle()
    assert threads.memory > 8000  # of a run that lives
    await writer.append(text_of(words()[-1]))
    await writer.append(text_of(finished(thread="v")))
    await world.settle()
    assert threads.memory < 6000

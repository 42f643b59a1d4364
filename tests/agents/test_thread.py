"""A thread's fold and its segments, whatever comes between reads and commits."""

from __future__ import annotations

import asyncio

import pytest

from service.agents.errors import Gone
from service.agents.feed import Follower
from service.agents.thread import segments_of
from service.agents.threads import Threads
from service.core.errors import StoreUnavailable
from service.core.model import Position
from tests.agents.fakes import THREAD, World, put
from tests.agents.runs import finished, started, text_of, words


@pytest.mark.requirement("R44")
async def test_commits_while_a_page_is_read_are_taken_in_once() -> None:
    world = World()
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    await put(writer, *words("a")[:2])
    world.store.reads.clear()
    reading = asyncio.create_task(writer.thread.snapshot())
    await world.settle()
    await put(writer, words("b")[1], words()[1])
    await world.settle()
    world.store.reads.set()
    snapshot = await reading
    assert snapshot.offset == 5 and len(snapshot.events) == 4
    assert snapshot == await (await world.process("two").open("t")).snapshot()


@pytest.mark.requirement("R44")
async def test_an_event_that_is_read_before_it_is_confirmed_is_taken_in_once() -> None:
    world = World()
    writer = await world.process().start("t", "r", writes="relay")
    await put(writer, words("a")[0])
    await world.settle()
    world.store.script.append("late")
    await put(writer, words("a")[1])
    snapshot = await writer.thread.snapshot()
    assert snapshot.offset == 3
    world.store.release()
    assert await writer.thread.snapshot() == snapshot
    assert world.store.events() == [started(), *words("a")[:2]]


@pytest.mark.requirement("B67")
async def test_the_whole_thread_is_known_beside_a_short_history() -> None:
    world = World(window=64)
    threads = world.process()
    deltas = [f"{number} " for number in range(1000)]
    for run in ("r1", "r2"):
        writer = await threads.start("t", run, writes="relay")
        for each in words(*deltas, message=f"m-{run}"):
            await writer.append(text_of(each))
        await writer.append(text_of(finished(run)))
        await world.settle()
    snapshot = await writer.thread.snapshot()
    again = await (await world.process("two").open("t")).snapshot()
    assert again == snapshot and again.complete and len(again.events) == 10
    assert 2 * 1000 // 32 <= len(world.store.segments()) <= 2 * 1000 // 16
    for segment, following in zip(
        world.store.segments(), world.store.segments()[1:], strict=False
    ):
        assert segment["upto"] == following["from"]


@pytest.mark.requirement("B67")
async def test_a_process_that_dies_in_mid_run_leaves_the_whole_text() -> None:
    world = World(window=64)
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    deltas = words(*[f"{number} " for number in range(500)])[:-1]
    for each in deltas:
        await writer.append(text_of(each))
    await world.settle()
    world.kill(threads)
    thread = await world.process("two").open("t")
    await world.settle()
    snapshot = await thread.snapshot()
    content = "".join(each["delta"] for each in deltas[1:])
    assert snapshot.complete and content in snapshot.events[2]


@pytest.mark.requirement("B67")
async def test_a_run_waits_while_its_segments_cannot_be_stored() -> None:
    world = World(window=64)
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    await writer.append(text_of(words()[0]))
    world.store.segment_script.extend(["fail"] * 5)

    async def write() -> None:
        for number in range(200):
            await writer.append(text_of(words(f"{number} ")[1]))

    writing = asyncio.create_task(write())
    for _ in range(20):  # more turns than it would take to write all of it
        await world.settle()
    assert not writing.done()
    assert 32 <= len(world.store.events()) <= 64
    await world.pass_time(10)
    assert writing.done() and len(world.store.events()) == 202
    again = await (await world.process("two", rounds=False).open("t")).snapshot()
    assert again.complete and again.offset == 202


@pytest.mark.requirement("B67")
async def test_two_processes_that_store_one_part_store_it_once() -> None:
    world = World(shared=True)
    one = world.process("one")
    await put(await one.start("t", "r", writes="relay"), *words("a"))
    await world.settle()
    world.kill(one)
    world.process("two")
    world.process("three")
    await world.pass_time(30)
    assert [(each["from"], each["upto"]) for each in world.store.segments()] == [(0, 5)]


@pytest.mark.requirement("B67")
async def test_a_history_that_was_trimmed_is_said_and_passed_over() -> None:
    world = World(window=64)
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    for each in words(*["x"] * 100):
        await writer.append(text_of(each))
    await world.settle()
    world.store.logs[segments_of(THREAD)].clear()
    thread = await world.process("two", rounds=False).open("t")
    snapshot = await thread.snapshot()
    assert snapshot.offset == 103 and not snapshot.complete


async def test_a_read_that_fails_is_a_temporary_error_and_repeats() -> None:
    world = World()
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    world.store.read_fails = 1
    with pytest.raises(StoreUnavailable):
        await writer.thread.snapshot()
    assert (await writer.thread.snapshot()).offset == 1


async def test_what_is_removed_is_gone_from_the_thread() -> None:
    world = World()
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    await put(writer, *words("secret"))
    await writer.append(text_of(finished()))
    await world.settle()
    await world.store.remove(THREAD)
    await threads.remove(THREAD)
    assert "secret" not in str((await writer.thread.snapshot()).events)


# Followers.


class Feed:
    def add(self, follower: Follower) -> None:
        self.follower = follower

    def join(self) -> None:
        """There is no hub: the test wakes it."""

    def discard(self, follower: Follower) -> None:
        """Nothing to do."""


async def follower(
    world: World, threads: Threads, after: int, *, shared: bool = False
) -> Follower:
    thread = await threads.open("t")
    return Follower(
        thread,
        Position(after, ""),
        Feed(),  # type: ignore[arg-type]
        world.store,  # type: ignore[arg-type]
        world.clock,
        shared=shared,
    )


@pytest.mark.requirement("R44", "B67")
async def test_a_viewer_gets_each_event_once_wherever_it_begins() -> None:
    world = World()
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    for each in [*words("a", "b", "c"), finished()]:
        await writer.append(text_of(each))
    top = len(world.store.events())
    for after in range(top):
        viewer = await follower(world, threads, after)
        got: list[int] = []
        while len(got) < top - after:
            got += [each.offset for each in await viewer.next()]
        assert got == list(range(after + 1, top + 1))


async def test_a_viewer_that_waits_is_woken_and_can_give_up() -> None:
    world = World()
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    viewer = await follower(world, threads, 1)
    waiting = asyncio.create_task(viewer.next(5.0))
    await world.settle()
    assert not waiting.done()
    await writer.append(text_of(words()[0]))
    viewer.wake()
    assert [each.offset for each in await waiting] == [2]
    waiting = asyncio.create_task(viewer.next(5.0))
    await world.settle()
    await world.pass_time(4.5)
    assert not waiting.done()
    await world.pass_time(0.5)
    assert await waiting == []
    waiting = asyncio.create_task(viewer.next())
    await world.settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await writer.append(text_of(words()[1]))
    assert [each.offset for each in await viewer.next()] == [3]


@pytest.mark.requirement("R44", "B67")
async def test_a_commit_while_a_viewer_reads_is_not_forgotten() -> None:
    world = World()
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    viewer = await follower(world, threads, 1)
    world.store.reads.clear()
    waiting = asyncio.create_task(viewer.next())
    await world.settle()  # the page was taken, and has nothing new
    await writer.append(text_of(words()[0]))
    viewer.wake()
    world.store.reads.set()
    await world.settle()
    assert waiting.done()
    assert [each.offset for each in waiting.result()] == [2]


async def test_a_viewer_that_is_too_slow_is_told_that_its_place_is_gone() -> None:
    world = World(window=64)
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    viewer = await follower(world, threads, 1)
    for each in words(*["x"] * 100):
        await writer.append(text_of(each))
    with pytest.raises(Gone):
        await viewer.next()
    for wrong in (Position(1000, ""), Position(100, "another")):
        viewer = await follower(world, threads, 0)
        viewer.position = wrong
        with pytest.raises(Gone):
            await viewer.next()


async def test_a_viewer_of_a_shared_store_looks_by_itself() -> None:
    world = World(shared=True)
    one, two = world.process("one"), world.process("two")
    writer = await one.start("t", "r", writes="relay")
    viewer = await follower(world, two, 1, shared=True)
    waiting = asyncio.create_task(viewer.next())
    await world.settle()
    await writer.append(text_of(words()[0]))
    assert not waiting.done()
    await world.pass_time(1.5)
    assert [each.offset for each in await waiting] == [2]


async def test_what_was_erased_is_passed_over() -> None:
    world = World()
    threads = world.process()
    writer = await threads.start("t", "r", writes="relay")
    for each in words(*["x"] * 70):
        await writer.append(text_of(each))
    for publication in world.store.logs[THREAD][:66]:
        publication.data = "null"  # type: ignore[assignment]
    viewer = await follower(world, threads, 0)
    assert [each.offset for each in await viewer.next()] == list(range(67, 74))
    assert started() not in world.store.events()

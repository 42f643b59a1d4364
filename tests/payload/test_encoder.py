"""The encoder: off the loop what may hold it, in turn, in time, in order, and bounded.

Threads are real; when their objects' methods return, and whether they compute, is up to
the test.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from service.core.errors import TOO_MANY_REQUESTS, ReplyError
from service.core.hooks import Raw
from service.core.model import RawJson
from service.payload import dump
from service.payload.encoder import PayloadEncoder
from tests.clock import VirtualClock
from tests.payload.strictjson import strict

THREADS, WAITING, PATIENCE, SECONDS, LOOK = 8, 64, 1.0, 1.0, 1 / 64
LATE = {"error": {"reason": "time", "limit": 1.0}}


class Stuck:
    """An object whose method returns when it is told to."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.began = threading.Event()
        self.thread: threading.Thread | None = None
        self._go = threading.Event()

    def to_dict(self) -> Any:
        self.thread = threading.current_thread()
        self.began.set()
        self._go.wait(60)
        return {"name": self.name}

    def finish(self) -> None:
        self._go.set()


class Bench:
    """An encoder on a clock that stands still.

    Attributes:
        computing: The threads that compute: all of their time is used.
    """

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.computing: set[threading.Thread | None] = set()
        self.encoder = PayloadEncoder(self.clock, cpu=self._cpu)
        self.made: list[Stuck] = []

    def _cpu(self, thread: threading.Thread) -> float:
        return self.clock.now() if thread in self.computing else 0.0

    def stuck(self, name: str = "") -> Stuck:
        self.made.append(Stuck(name))
        return self.made[-1]

    async def begun(self, *objects: Stuck) -> list[asyncio.Task[RawJson]]:
        """Begin with objects; their threads wait inside them."""
        tasks = []
        for one in objects:
            tasks.append(asyncio.create_task(self.encoder.dump(one)))
            await settle()
            self.clock.advance(LOOK)
            await asyncio.to_thread(one.began.wait, 10)
        return tasks


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def result(task: asyncio.Task[RawJson]) -> Any:
    return strict(await asyncio.wait_for(task, 60))


async def refused(task: asyncio.Task[RawJson]) -> bool:
    with pytest.raises(ReplyError) as caught:
        await asyncio.wait_for(task, 60)
    return caught.value.error is TOO_MANY_REQUESTS and caught.value.error.temporary


@pytest.fixture
async def bench() -> Any:
    bench = Bench()
    yield bench
    for one in bench.made:
        one.finish()
    bench.encoder.close()


@dataclass
class Item:
    id: int


SMALL = [
    None,
    1,
    "text",
    "x" * 8000,
    {"type": "token", "seq": 3, "at": datetime.now(UTC), "id": UUID(int=1)},
    [Decimal("1.5"), [[]], {"a": ()}],
    Raw(RawJson("[" + "1," * 100_000 + "1]")),
]
LARGE = [
    "x" * 8193,
    [1] * 8193,
    {"a": {"b": [0] * 9000}},
    Item(1),
    {"a": Item(1)},
    {1: 1},
    2**70,
    [Raw(RawJson("1"))],
    object(),
]


@pytest.mark.parametrize("value", SMALL, ids=lambda value: repr(value)[:20])
async def test_a_small_value_of_known_types_is_encoded_at_once(
    bench: Bench, value: object
) -> None:
    work = bench.encoder.dump(value)
    with pytest.raises(StopIteration) as done:
        work.send(None)  # type: ignore[attr-defined]
    assert done.value.value == dump(value)


@pytest.mark.parametrize("value", LARGE, ids=lambda value: repr(value)[:20])
async def test_any_other_is_encoded_by_a_thread_to_the_same_text(
    bench: Bench, value: object
) -> None:
    task = asyncio.create_task(bench.encoder.dump(value))
    assert await task == dump(value)
    assert bench.encoder.busy == 0


@pytest.mark.requirement("R19", "B44")
async def test_the_loop_goes_on_while_a_method_blocks(bench: Bench) -> None:
    stuck = bench.stuck("a")
    [task] = await bench.begun(stuck)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not task.done()
    stuck.finish()
    assert await result(task) == {"name": "a"}


class Nested:
    """Plain members, of which one is stuck."""

    def __init__(self, stuck: Stuck) -> None:
        self._stuck = stuck

    def to_dict(self) -> object:
        return {"type": "state", "run_id": "r1", "agent": self._stuck}


@pytest.mark.requirement("R19", "B46")
async def test_after_a_second_the_error_object_comes_and_keeps_the_ids(
    bench: Bench,
) -> None:
    stuck, deep = bench.stuck(), bench.stuck()
    plain = asyncio.create_task(
        bench.encoder.dump({"type": "token", "seq": 7, "x": stuck})
    )
    await asyncio.to_thread(stuck.began.wait, 10)
    bench.clock.advance(LOOK)
    nested = asyncio.create_task(bench.encoder.dump(Nested(deep)))
    await asyncio.to_thread(deep.began.wait, 10)
    bench.clock.advance(SECONDS - LOOK - 0.001)
    await settle()
    assert not plain.done()
    bench.clock.advance(0.001)
    assert await result(plain) == {"type": "token", "seq": 7, **LATE}
    assert not nested.done()
    bench.clock.advance(LOOK)
    assert await result(nested) == {"type": "state", "run_id": "r1", **LATE}
    assert bench.encoder.late == 2
    assert bench.encoder.busy == 2  # until the methods return
    stuck.finish()
    deep.finish()
    for _ in range(1000):
        if bench.encoder.busy == 0:
            break
        await asyncio.to_thread(threading.Event().wait, 0.005)
    assert bench.encoder.busy == 0


@pytest.mark.requirement("R19", "B45")
async def test_four_stuck_encodes_hold_up_nobody(bench: Bench) -> None:
    tasks = await bench.begun(*(bench.stuck() for _ in range(4)))
    before = bench.clock.now()
    for number in range(200):
        assert await result(asyncio.create_task(bench.encoder.dump(Item(number)))) == {
            "id": number
        }
    assert bench.clock.now() == before  # nobody waited for a timer
    assert not any(task.done() for task in tasks)


@pytest.mark.requirement("B44")
async def test_a_value_waits_while_another_is_computed(bench: Bench) -> None:
    one, two = bench.stuck("one"), bench.stuck("two")
    [first] = await bench.begun(one)
    bench.computing.add(one.thread)
    second = asyncio.create_task(bench.encoder.dump(two))
    for _ in range(20):
        await settle()
        bench.clock.advance(LOOK)
        assert (bench.encoder.busy, bench.encoder.waiting) == (1, 1)
    bench.computing.clear()  # now it sleeps
    bench.clock.advance(LOOK)
    assert (bench.encoder.busy, bench.encoder.waiting) == (2, 0)
    two.finish()
    assert await result(second) == {"name": "two"}
    one.finish()
    assert await result(first) == {"name": "one"}


async def test_a_value_that_was_computed_gives_way_to_the_next(bench: Bench) -> None:
    one = bench.stuck("one")
    [first] = await bench.begun(one)
    bench.computing.add(one.thread)
    rest = [asyncio.create_task(bench.encoder.dump([n] * 9000)) for n in range(5)]
    await settle()
    assert bench.encoder.waiting == 5
    one.finish()
    assert [(await result(task))[0] for task in rest] == [0, 1, 2, 3, 4]
    assert (await result(first), bench.encoder.waiting) == ({"name": "one"}, 0)


async def test_one_that_computes_for_ever_is_given_up_and_others_begin(
    bench: Bench,
) -> None:
    one = bench.stuck()
    [first] = await bench.begun(one)
    bench.computing.add(one.thread)
    bench.clock.advance(0.5)
    second = asyncio.create_task(bench.encoder.dump(Item(2)))
    await settle()
    bench.clock.advance(0.5)
    assert await result(first) == LATE
    assert await result(second) == {"id": 2}


@pytest.mark.requirement("B47", "B53")
async def test_what_waits_is_bounded_in_number_and_time(bench: Bench) -> None:
    stuck = [bench.stuck() for _ in range(THREADS)]
    tasks = await bench.begun(*stuck)
    waiting = [asyncio.create_task(bench.encoder.dump(Item(n))) for n in range(WAITING)]
    await settle()
    assert (bench.encoder.busy, bench.encoder.waiting) == (THREADS, WAITING)
    assert await refused(asyncio.create_task(bench.encoder.dump(Item(-1))))
    assert await bench.encoder.dump({"small": 1}) == '{"small":1}'
    stuck[0].finish()  # one thread for all of them
    assert await result(tasks[0]) == {"name": ""}
    assert [(await result(task))["id"] for task in waiting] == list(range(WAITING))
    assert bench.encoder.refused == 1


@pytest.mark.requirement("B47")
async def test_after_patience_a_value_is_refused_and_another_may_try(
    bench: Bench,
) -> None:
    stuck = [bench.stuck() for _ in range(THREADS)]
    tasks = await bench.begun(*stuck)
    task = asyncio.create_task(bench.encoder.dump(Item(1)))
    await settle()
    bench.clock.advance(PATIENCE - 0.001)
    await settle()
    assert not task.done()
    bench.clock.advance(0.001)
    assert await refused(task)
    assert all([await result(task) == LATE for task in tasks])
    assert await refused_after(bench, PATIENCE)  # the threads are taken still
    stuck[3].finish()
    for _ in range(1000):
        if bench.encoder.busy < THREADS:
            break
        await asyncio.to_thread(threading.Event().wait, 0.005)
    assert await bench.encoder.dump(Item(2)) == '{"id":2}'
    assert bench.encoder.busy == THREADS - 1


async def refused_after(bench: Bench, seconds: float) -> bool:
    task = asyncio.create_task(bench.encoder.dump(Item(1)))
    await settle()
    bench.clock.advance(seconds)
    return await refused(task)


async def test_a_caller_that_is_cancelled_waits_no_more(bench: Bench) -> None:
    one = bench.stuck()
    [running] = await bench.begun(one)
    bench.computing.add(one.thread)
    waiting = asyncio.create_task(bench.encoder.dump(Item(1)))
    await settle()
    waiting.cancel()
    running.cancel()
    await asyncio.wait([waiting, running])
    assert (bench.encoder.busy, bench.encoder.waiting) == (1, 0)
    one.finish()
    assert await bench.encoder.dump(Item(2)) == '{"id":2}'
    bench.clock.advance(10)
    assert (bench.encoder.late, bench.encoder.refused) == (0, 0)


async def test_the_caller_of_a_stuck_encode_that_is_cancelled_frees_the_turn(
    bench: Bench,
) -> None:
    one = bench.stuck()
    [running] = await bench.begun(one)
    bench.computing.add(one.thread)
    running.cancel()
    await asyncio.wait([running])
    task = asyncio.create_task(bench.encoder.dump(Item(1)))
    await settle()
    bench.clock.advance(SECONDS - LOOK)
    assert await result(task) == {"id": 1}


async def test_closing_refuses_what_waits_and_lets_go_of_the_threads(
    bench: Bench,
) -> None:
    one = bench.stuck("one")
    [running] = await bench.begun(one)
    bench.computing.add(one.thread)
    waiting = asyncio.create_task(bench.encoder.dump(Item(1)))
    await settle()
    bench.encoder.close()
    assert await refused(waiting)
    assert await refused(asyncio.create_task(bench.encoder.dump(Item(2))))
    assert await bench.encoder.dump("small") == '"small"'
    one.finish()
    assert await result(running) == {"name": "one"}
    assert one.thread is not None
    assert one.thread.daemon  # it may be stuck for ever: the process ends all the same
    await asyncio.to_thread(one.thread.join, 60)
    assert not one.thread.is_alive()
    assert bench.clock.pending == []


class Interrupting:
    def to_dict(self) -> object:
        raise KeyboardInterrupt


async def test_an_interrupt_passes_through_to_the_caller_not_to_the_thread(
    bench: Bench,
) -> None:
    for _ in range(2):
        work = bench.encoder.dump(Interrupting())
        future = work.send(None)  # type: ignore[attr-defined]
        while not future.done():
            await asyncio.to_thread(threading.Event().wait, 0.005)
        assert isinstance(future.exception(), KeyboardInterrupt)
        work.close()
    assert await bench.encoder.dump(Item(1)) == '{"id":1}'


# In order.


async def use(bench: Bench, used: list[str], key: str, value: object) -> None:
    async with bench.encoder.in_order(key, value) as text:
        used.append(text[:20])


def start(bench: Bench, used: list[str], key: str, value: object) -> asyncio.Task[None]:
    return asyncio.create_task(use(bench, used, key, value))


async def test_a_small_value_does_not_overtake_a_large_one_of_its_key(
    bench: Bench,
) -> None:
    one, two = bench.stuck("one"), bench.stuck("two")
    used: list[str] = []
    first = start(bench, used, "a", one)
    await asyncio.to_thread(one.began.wait, 10)
    bench.clock.advance(LOOK)
    rest = [start(bench, used, "a", value) for value in (1, two, 2)]
    await asyncio.to_thread(two.began.wait, 10)  # at the same time
    other = start(bench, used, "b", 0)
    await other
    two.finish()
    while bench.encoder.busy == 2:
        await asyncio.to_thread(threading.Event().wait, 0.005)
    await settle()
    assert used == ["0"]
    one.finish()
    await asyncio.gather(first, *rest)
    assert used == ["0", '{"name":"one"}', "1", '{"name":"two"}', "2"]


@pytest.mark.parametrize("how", ["cancelled", "refused", "failed"])
async def test_one_that_fails_lets_nobody_overtake_the_one_before_it(
    bench: Bench, how: str
) -> None:
    one = bench.stuck("one")
    used: list[str] = []
    first = start(bench, used, "a", one)
    await asyncio.to_thread(one.began.wait, 10)
    bench.computing.add(one.thread)
    if how == "failed":

        async def fail() -> None:
            async with bench.encoder.in_order("a", 2):
                raise ZeroDivisionError

        second = asyncio.create_task(fail())
    else:
        second = start(bench, used, "a", Item(2))
    await settle()
    third = start(bench, used, "a", 3)
    await settle()
    if how == "cancelled":
        second.cancel()
    elif how == "refused":
        bench.encoder.close()
    await settle()
    assert second.done() == (how != "failed")
    assert not third.done()
    one.finish()
    await asyncio.gather(first, third)
    await asyncio.wait([second])
    assert used == ['{"name":"one"}', "3"]
    if how != "cancelled":
        kind = ReplyError if how == "refused" else ZeroDivisionError
        assert isinstance(second.exception(), kind)


async def test_those_that_wait_in_order_are_bounded(bench: Bench) -> None:
    one = bench.stuck()
    used: list[str] = []
    first = start(bench, used, "a", one)
    await asyncio.to_thread(one.began.wait, 10)
    rest = [start(bench, used, "a", n) for n in range(16 * WAITING - 1)]
    await settle()
    with pytest.raises(ReplyError) as caught:
        await use(bench, used, "a", -1)
    assert caught.value.error is TOO_MANY_REQUESTS
    await use(bench, used, "b", -2)  # small, with nothing before it
    one.finish()
    await asyncio.gather(first, *rest)
    assert used[:3] == ["-2", '{"name":""}', "0"]
    assert len(used) == 16 * WAITING + 1

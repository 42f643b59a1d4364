"""A full queue drops what may be dropped, the lowest first, before it closes anyone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from service.core.ports import Encoding
from service.core.priority import DroppableText, Priority, priority_of
from service.protocol.json import Json
from service.protocol.protobuf import Protobuf
from service.protocol.replies import join_push
from tests.connections.test_outbox import Bench, spin

JOIN, FLEETING = Priority.JOIN_LEAVE, Priority.PUBLICATION


def text(label: str, size: int = 10, priority: Priority | None = None) -> str:
    """Return a message of *size* bytes that begins with *label*."""
    made = label.ljust(size, ".")
    return made if priority is None else DroppableText(made, priority)


def labels(bench: Bench) -> list[str]:
    lines = [line for frame in bench.frames for line in frame.split("\n")]
    return [line.rstrip(".") for line in lines]


def fill(bench: Bench, *messages: tuple[str, Priority | None]) -> None:
    for label, priority in messages:
        bench.outbox.put(text(label, priority=priority))


# What is dropped, and in which order.


@pytest.mark.requirement("L7", "B62")
def test_the_lowest_priority_makes_room_and_the_rest_keeps_its_order() -> None:
    bench = Bench(queue_size=60)
    fill(
        bench,
        ("1", None),
        ("j1", JOIN),
        ("f1", FLEETING),
        ("2", None),
        ("j2", JOIN),
        ("f2", FLEETING),
    )
    bench.outbox.put(text("3"))
    assert bench.outbox.displaced == 2
    bench.turns.run()
    assert labels(bench) == ["1", "f1", "2", "f2", "3"]
    assert bench.failures == []
    assert (bench.outbox.sent, bench.outbox.dropped) == (5, 2)


@pytest.mark.requirement("L7", "B62")
def test_the_next_priority_goes_when_the_lowest_was_not_enough() -> None:
    bench = Bench(queue_size=60)
    fill(bench, ("1", None), ("j1", JOIN), ("f1", FLEETING), ("2", None))
    fill(bench, ("f2", FLEETING), ("3", None))
    bench.outbox.put(text("4", size=30))
    bench.turns.run()
    assert labels(bench) == ["1", "2", "3", "4"]
    assert (bench.outbox.displaced, bench.failures) == (3, [])


@pytest.mark.requirement("L7", "B62")
def test_only_without_anything_to_drop_it_closes() -> None:
    bench = Bench(queue_size=30)
    fill(bench, ("1", None), ("j", JOIN), ("2", None), ("3", None))
    assert (bench.outbox.displaced, bench.failures) == (1, [])
    bench.outbox.put(text("4"))
    assert bench.failures == [3008]
    assert bench.events == ["failed", "end"]
    # 1 that made room, and 4 at the end: each message is counted once.
    assert (bench.outbox.sent, bench.outbox.dropped) == (0, 5)
    assert bench.outbox.displaced == 1


@pytest.mark.parametrize("priority", [JOIN, FLEETING])
@pytest.mark.requirement("L7", "B62")
def test_what_may_be_dropped_never_closes(priority: Priority) -> None:
    bench = Bench(queue_size=30)
    fill(bench, ("1", None), ("2", None), ("3", None))
    for _ in range(5):
        bench.outbox.put(text("new", priority=priority))
    assert bench.failures == []
    assert bench.outbox.displaced == 5
    bench.turns.run()
    assert labels(bench) == ["1", "2", "3"]


def test_the_newest_of_one_priority_stays() -> None:
    bench = Bench(queue_size=30)
    fill(bench, *((f"f{n}", FLEETING) for n in range(1, 5)))
    bench.turns.run()
    assert labels(bench) == ["f4"]
    assert bench.outbox.displaced == 3


def test_a_higher_priority_is_not_displaced_by_a_lower() -> None:
    bench = Bench(queue_size=30)
    fill(bench, ("f1", FLEETING), ("f2", FLEETING), ("f3", FLEETING), ("j", JOIN))
    bench.turns.run()
    assert labels(bench) == ["f1", "f2", "f3"]


def test_a_higher_priority_displaces_a_lower() -> None:
    bench = Bench(queue_size=30)
    fill(bench, ("j1", JOIN), ("1", None), ("j2", JOIN), ("f", FLEETING))
    bench.turns.run()
    assert labels(bench) == ["1", "f"]


# The pressed queue.


async def test_what_was_dropped_is_not_accepted_until_it_is_half_empty() -> None:
    bench = Bench(queue_size=100, frame_size=20)
    bench.stick()
    fill(bench, ("way", None))
    bench.turns.run()
    fill(bench, ("j", JOIN), *((str(n), None) for n in range(1, 11)))
    assert (bench.outbox.size, bench.outbox.displaced) == (100, 1)
    sizes = []
    for _ in range(6):
        stuck = bench.stuck
        assert stuck is not None
        bench.stick()
        stuck.set_result(None)  # the next message, alone in its frame, is under way
        await spin()
        bench.outbox.put(text("j", priority=JOIN))
        sizes.append(bench.outbox.size)
    assert sizes == [90, 80, 70, 60, 60, 60]  # accepted from 50 on
    assert bench.outbox.displaced == 5


def test_a_pressed_queue_takes_what_was_not_dropped_from_it() -> None:
    bench = Bench(queue_size=100)
    fill(bench, ("j", JOIN), *((str(n), None) for n in range(1, 10)))
    fill(bench, ("f1", FLEETING), ("j", JOIN))
    assert (bench.outbox.size, bench.outbox.displaced) == (100, 2)
    bench.turns.run()
    assert labels(bench)[-2:] == ["9", "f1"]


def test_it_is_looked_through_once_while_it_drains_by_half() -> None:
    looked = 0

    class Counting(Json):
        plain = False

        @staticmethod
        def size(message: str) -> int:
            nonlocal looked
            looked += 1
            return len(message)

    bench = Bench()
    outbox = bench.make(bench.flusher, Counting(), queue_size=10_000)
    for n in range(1000):
        outbox.put(text(str(n)))
    looked = 0
    for _ in range(1000):
        outbox.put(text("f", priority=FLEETING))
        outbox.put(text("j", priority=JOIN))
    # Each is measured when it comes; the queue of 1,000 once for each priority.
    assert looked == 2000 + 3 * 1000
    assert outbox.displaced == 2000


def test_a_queue_that_was_emptied_is_pressed_no_more() -> None:
    bench = Bench(queue_size=30)
    fill(bench, ("1", None), ("j1", JOIN), ("2", None), ("3", None))
    bench.turns.run()
    fill(bench, ("j2", JOIN), ("j3", JOIN), ("f", FLEETING))
    bench.turns.run()
    assert labels(bench) == ["1", "2", "3", "j2", "j3", "f"]


# Interleavings.


async def test_the_write_under_way_is_not_displaced() -> None:
    bench = Bench(queue_size=30)
    bench.stick()
    fill(bench, ("j1", JOIN))
    bench.turns.run()
    fill(bench, ("j2", JOIN), ("1", None), ("2", None), ("3", None))
    bench.free()
    await spin()
    assert labels(bench) == ["j1", "1", "2", "3"]
    assert (bench.outbox.sent, bench.outbox.dropped) == (4, 1)


def test_everything_waiting_is_displaced_before_its_flush() -> None:
    bench = Bench(queue_size=30)
    fill(bench, ("f1", FLEETING), ("f2", FLEETING))
    bench.outbox.put(text("large", 40, FLEETING))  # larger than the queue: alone
    assert bench.outbox.size == 40
    bench.turns.run()
    assert labels(bench) == ["large"]
    assert bench.events[-1] == "drained"


def test_a_ping_displaces_and_goes_first() -> None:
    bench = Bench(queue_size=30)
    fill(bench, ("reply", None))
    bench.turns.run()
    fill(bench, ("j1", JOIN), ("1", None), ("f", FLEETING))
    bench.outbox.put("{}", first=True)
    bench.turns.run()
    assert labels(bench) == ["reply", "{}", "1", "f"]


def test_the_first_message_of_all_stays_the_first() -> None:
    bench = Bench(queue_size=30)
    fill(bench, ("reply", None), ("j", JOIN), ("f", FLEETING))
    bench.outbox.put("{}", first=True)
    bench.turns.run()
    assert labels(bench) == ["reply", "{}", "f"]


@pytest.mark.parametrize("end", ["close", "drop"])
def test_a_pressed_queue_ends_as_any(end: str) -> None:
    bench = Bench(queue_size=30)
    fill(bench, ("1", None), ("j", JOIN), ("2", None), ("3", None))
    if end == "close":
        bench.outbox.close(bench.end)
        bench.turns.run()
        assert labels(bench) == ["1", "2", "3"]
        assert bench.events[-1] == "end"
        assert (bench.outbox.sent, bench.outbox.dropped) == (3, 1)
    else:
        bench.outbox.drop()
        bench.turns.run()
        assert labels(bench) == []
        assert (bench.outbox.sent, bench.outbox.dropped) == (0, 4)
    assert bench.outbox.displaced == 1


@pytest.mark.requirement("R20", "B61", "B58")
async def test_a_write_that_fails_drops_its_messages_and_the_rest() -> None:
    bench = Bench(queue_size=30, frame_size=20)
    bench.stick()
    fill(bench, ("1", None))
    bench.turns.run()
    # It has left the queue, and its write has not ended.
    assert (bench.outbox.sent, bench.outbox.dropped) == (0, 0)
    fill(bench, ("j", JOIN), ("2", None), ("3", None), ("4", None))
    bench.error = ConnectionResetError("the client is gone")
    bench.free()
    await spin()
    assert (bench.frames, bench.failures) == ([], [3009])
    # The write had taken 1; 2 to 4 waited; j made room. None is counted twice.
    assert (bench.outbox.sent, bench.outbox.dropped) == (0, 5)
    assert bench.outbox.displaced == 1


# Both forms of the wire carry the priority.


@pytest.mark.parametrize("encoding", [Json(), Protobuf()], ids=lambda one: one.name)
def test_the_priority_is_that_of_the_text(encoding: Encoding) -> None:
    push = join_push('"news"', '{"user":"ann","client":"1"}')  # type: ignore[arg-type]
    droppable = DroppableText(push, JOIN)
    assert priority_of(encoding.encode(push)) is None
    assert priority_of(encoding.encode(droppable)) is JOIN
    assert priority_of(encoding.encode(droppable)) is JOIN  # remembered
    assert encoding.encode(droppable) == encoding.encode(push)
    joined = encoding.join([encoding.encode(droppable), encoding.encode(push)])
    assert type(joined) in (str, bytes)


# The state machine.

LIMIT = 100
FRAME = 40


class OutboxMachine(RuleBasedStateMachine):
    """Any order of puts, turns and writes, against a list of what was put."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bench: Bench = self.run(self.make)
        self.put: list[tuple[str, Priority | None]] = []
        self.count = 0

    @staticmethod
    def make() -> Bench:
        return Bench(queue_size=LIMIT, frame_size=FRAME)

    def run(self, step: Callable[[], Any]) -> Any:
        async def stepped() -> Any:
            found = step()
            await spin()
            return found

        return self.loop.run_until_complete(stepped())

    def teardown(self) -> None:
        def end() -> None:
            if self.bench.stuck is not None:
                self.bench.free()
            self.bench.turns.run()

        self.run(end)
        self.run(end)
        self.check_end()
        self.loop.close()

    @property
    def closed(self) -> bool:
        return bool(self.bench.failures)

    @precondition(lambda self: not self.closed)
    @rule(
        size=st.integers(6, 60),
        priority=st.sampled_from([None, JOIN, FLEETING]),
    )
    def put_one(self, size: int, priority: Priority | None) -> None:
        outbox = self.bench.outbox
        self.count += 1
        label = f"{self.count:05d}"
        before, lost = outbox.size, outbox.displaced
        self.run(lambda: outbox.put(text(label, size, priority)))
        self.put.append((label, priority))
        if priority is not None:
            assert not self.closed, "a push that may be dropped has closed it"
        if before + size <= LIMIT // 2:
            assert outbox.displaced == lost, "dropped from a queue with room"

    @rule()
    def turn(self) -> None:
        self.run(self.bench.turns.turn)

    @precondition(lambda self: not self.closed and self.bench.stuck is None)
    @rule()
    def stick(self) -> None:
        self.run(self.bench.stick)

    @precondition(lambda self: not self.closed and self.bench.stuck is not None)
    @rule(again=st.booleans())
    def free(self, again: bool) -> None:
        def step() -> None:
            stuck = self.bench.stuck
            assert stuck is not None
            self.bench.stuck = None
            if again:
                self.bench.stick()
            if not stuck.done():
                stuck.set_result(None)

        self.run(step)

    @invariant()
    def bounded_and_counted(self) -> None:
        outbox = self.bench.outbox
        assert outbox.size <= LIMIT
        assert outbox.displaced <= outbox.dropped
        assert outbox.sent + outbox.dropped <= len(self.put)

    def check_end(self) -> None:
        outbox, written = self.bench.outbox, labels(self.bench)
        assert outbox.sent + outbox.dropped == len(self.put)
        assert len(written) == outbox.sent
        order = [label for label, _ in self.put]
        assert written == [label for label in order if label in set(written)]
        if not self.closed:
            kept = [label for label, priority in self.put if priority is None]
            assert [label for label in written if label in set(kept)] == kept
            assert outbox.dropped == outbox.displaced


@pytest.mark.requirement("L7", "B62", "B64")
def test_any_order_of_puts_and_writes() -> None:
    run_state_machine_as_test(
        OutboxMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
        ),
    )

"""How appends reach the writer's thread: those of a turn of the event loop together.

The thread is the real one; what it would write to a database is noted instead. Where
the thread has to be busy, its commit waits for the test.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable

import pytest

from service.core.errors import StoreUnavailable
from service.core.model import Appended, Channel, Draft, Position
from service.core.ports import History
from service.stores.sqlite.writer import BatchResult, Job, QueuedAppend, StoreThread
from tests.stores.support import CHAT, Bench, on_disk

NEWS = Channel("news")
BATCH = 8  # appends per commit, at most


class CountingLoop:
    """The running loop, with counts of what is asked of it.

    Attributes:
        hand_overs: Callbacks for the end of a turn.
        wake_ups: Those that another thread asked for.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.hand_overs = 0
        self.wake_ups = 0

    def create_future(self) -> asyncio.Future[None]:
        return self._loop.create_future()

    def call_soon(self, callback: Callable[..., object]) -> None:
        self.hand_overs += 1
        self._loop.call_soon(callback)

    def call_soon_threadsafe(self, callback: Callable[..., object]) -> None:
        self.wake_ups += 1
        self._loop.call_soon_threadsafe(callback)


class Writer:
    """A writer's thread that notes what it commits.

    Attributes:
        begun: The data of each commit that was tried, on the thread.
        events: What was done, in order: the data of commits, and jobs by name.
        outcomes: What was reported, in order: the data of an append, and whether it
            was stored.
        spoilt: Data that cannot be stored.
        deadly: Data that ends the thread.
        going: While it is cleared, a commit waits.
        runs_on: The thread, once it has begun a commit.
    """

    def __init__(self) -> None:
        self.loop = CountingLoop()
        self.begun: list[list[str]] = []
        self.events: list[object] = []
        self.outcomes: list[tuple[str, bool]] = []
        self.spoilt: set[str] = set()
        self.deadly: set[str] = set()
        self.going = threading.Event()
        self.going.set()
        self._told = asyncio.Event()
        self._in_commit = threading.Semaphore(0)
        self.thread = StoreThread(
            "write",
            self.loop,
            commit=self._commit,
            wait_for_lock=lambda seconds: None,
            faulted=lambda error, tries: self.thread.decide(None),
            ended=lambda error: None,
            committed=self._committed,
            failed=self._failed,
            died=lambda error: self.events.append("died"),
            batch=BATCH,
            needs_store=lambda draft, history: True,
        )
        self.thread.start()

    def put(self, *data: str) -> None:
        for each in data:
            done = self._done(each)
            self.thread.put((NEWS, Draft(each), CHAT, done, len(each)))

    def _done(self, data: str) -> Callable[[object], None]:
        def done(outcome: object) -> None:
            self.outcomes.append((data, isinstance(outcome, Appended)))
            self._told.set()

        return done

    def job(self, name: str) -> None:
        self.thread.submit(Job(lambda: self.events.append(name), lambda *_: None))

    async def told(self, count: int) -> None:
        """Wait until *count* outcomes were reported."""
        while len(self.outcomes) < count:
            self._told.clear()
            await self._told.wait()

    async def in_commit(self) -> None:
        """Wait until the thread has begun one more commit."""
        await asyncio.to_thread(self._in_commit.acquire)

    def _commit(self, appends: list[QueuedAppend]) -> BatchResult:
        data = [append[1].data for append in appends]
        self.begun.append(data)
        self.runs_on = threading.current_thread()
        self._in_commit.release()
        self.going.wait()
        if self.deadly.intersection(data):
            raise SystemExit("it ends")
        if self.spoilt.intersection(data):
            raise sqlite3.DataError("it cannot be stored")
        self.events.append(data)
        result = BatchResult(list(appends))
        result.outcomes = [Appended(Position(1, "e"), True) for _ in appends]
        return result

    def _committed(self, result: BatchResult) -> None:
        for append, outcome in zip(result.appends, result.outcomes, strict=True):
            append[3](outcome)

    def _failed(self, appends: list[QueuedAppend], error: BaseException) -> None:
        for append in appends:
            append[3](StoreUnavailable(str(error)))


@pytest.fixture
async def writer():
    writer = Writer()
    yield writer
    writer.going.set()
    await writer.thread.stop()


async def one_turn() -> None:
    """Let the loop end its turn."""
    await asyncio.sleep(0)


def stored(*data: str) -> list[tuple[str, bool]]:
    return [(each, True) for each in data]


async def test_the_appends_of_a_turn_are_one_hand_over_and_one_commit(writer):
    writer.put("1", "2", "3", "4", "5")
    assert writer.begun == []  # the turn has not ended
    await writer.told(5)
    assert writer.events == [["1", "2", "3", "4", "5"]]
    assert writer.outcomes == stored("1", "2", "3", "4", "5")
    assert (writer.loop.hand_overs, writer.loop.wake_ups) == (1, 1)


async def test_a_turn_that_has_more_than_a_commit_is_still_one_hand_over(writer):
    data = [str(n) for n in range(2 * BATCH + 3)]
    writer.put(*data)
    await writer.told(len(data))
    assert writer.events == [data[:BATCH], data[BATCH : 2 * BATCH], data[2 * BATCH :]]
    assert writer.outcomes == stored(*data)
    assert writer.loop.hand_overs == 1


async def test_the_loop_goes_on_while_the_thread_commits(writer):
    writer.going.clear()
    writer.put("1")
    await writer.in_commit()
    for data in ("2", "3", "4"):  # a turn each
        writer.put(data)
        await one_turn()
    assert writer.begun == [["1"]]
    assert writer.outcomes == []
    assert writer.loop.hand_overs == 4
    writer.going.set()
    await writer.told(4)
    # What came meanwhile is one commit, however many turns it took.
    assert writer.events == [["1"], ["2", "3", "4"]]
    assert writer.outcomes == stored("1", "2", "3", "4")


async def test_reports_that_wait_for_the_loop_wake_it_once(writer):
    writer.put(*(str(n) for n in range(3 * BATCH)))
    behind = threading.Event()
    writer.thread.submit(Job(behind.set, lambda *_: None))
    behind.wait()  # and the loop does nothing until all are committed
    assert len(writer.events) == 3
    assert writer.loop.wake_ups == 1
    await writer.told(3 * BATCH)


async def test_a_job_keeps_its_place_among_the_appends_of_its_turn(writer):
    writer.put("1", "2")
    writer.job("job")
    writer.put("3")
    await writer.told(3)
    assert writer.events == [["1", "2"], "job", ["3"]]
    assert writer.outcomes == stored("1", "2", "3")


async def test_one_that_cannot_be_stored_fails_alone_and_in_its_place(writer):
    writer.spoilt = {"2", "4"}
    writer.put("1", "2", "3", "4", "5")
    await writer.told(5)
    assert writer.begun == [
        ["1", "2", "3", "4", "5"],
        ["1"],
        ["2"],
        ["3"],
        ["4"],
        ["5"],
    ]
    assert writer.outcomes == [
        ("1", True),
        ("2", False),
        ("3", True),
        ("4", False),
        ("5", True),
    ]
    writer.put("6", "7")  # the next turn is one commit again
    await writer.told(7)
    assert writer.begun[-1] == ["6", "7"]


async def test_a_stop_in_the_turn_of_appends_commits_them_first():
    writer = Writer()
    writer.put("1", "2")
    await writer.thread.stop()
    assert writer.events == [["1", "2"]]
    assert writer.outcomes == stored("1", "2")


async def test_a_thread_that_dies_leaves_no_append_unanswered():
    """Begun, given to it, in its queue, and not handed over yet: each fails once."""
    writer = Writer()
    writer.deadly = {"3"}
    writer.going.clear()
    data = [str(n) for n in range(BATCH + 2)]
    writer.put(*data)
    await writer.in_commit()
    writer.put("queued")
    await one_turn()
    writer.going.set()
    writer.runs_on.join()
    writer.put("not handed over")
    await writer.told(len(data) + 2)
    assert writer.events == ["died"]
    assert writer.outcomes == [
        (each, False) for each in (*data, "queued", "not handed over")
    ]
    await writer.thread.stop()


async def test_publications_of_a_turn_are_one_transaction_of_the_file(tmp_path, clock):
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    for count in (1, 20, 300):
        bench.commits.clear()
        done = [bench.append("a", history=History(1000, 60.0)) for _ in range(count)]
        outcomes = await asyncio.gather(*done)
        assert bench.commits == [count]
        first = outcomes[0].position.offset
        assert [o.position.offset for o in outcomes] == [
            first + n for n in range(count)
        ]
    await bench.store.close()

"""Viewer: pieces, signs of life, deadlines and ends, with time and log by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from service.agents.errors import Gone
from service.core.errors import StoreUnavailable
from service.core.event_stream import COMMENT
from service.core.model import Publication, RawJson
from service.http.agui.viewer import BEGIN, Viewer
from tests.clock import VirtualClock

WRITE_TIMEOUT = 2.0


class Log:
    """A follower whose answers the test gives."""

    def __init__(self) -> None:
        self.timeouts: list[float] = []
        self.closed = 0
        self._answers: asyncio.Queue[Any] = asyncio.Queue()

    async def next(self, timeout: float) -> list[Publication]:
        self.timeouts.append(timeout)
        answer = await self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        found: list[Publication] = answer
        return found

    def close(self) -> None:
        self.closed += 1

    def answer(self, *events: dict[str, Any], since: int = 0) -> None:
        self._answers.put_nowait(
            [
                Publication(since + n, RawJson(json.dumps(event)), None)
                for n, event in enumerate(events, 1)
            ]
        )

    def fail(self, error: Exception) -> None:
        self._answers.put_nowait(error)


class World:
    def __init__(self, *, live: bool = True, once: bool = False) -> None:
        self.clock, self.log = VirtualClock(), Log()
        self.taken = 0
        self.closed: list[str] = []
        self.viewer = Viewer(
            BEGIN,
            self.log,  # type: ignore[arg-type]  # as much of a follower as it needs
            self.clock,
            live=live,
            once=once,
            write_timeout=WRITE_TIMEOUT,
            progress=lambda: (0, self.taken),
            closed=lambda viewer: self.closed.append(viewer.outcome),
        )
        self.pieces: list[bytes] = []
        self.writing = asyncio.Event()
        self.writing.set()
        self.task = asyncio.create_task(self._answer())

    async def _answer(self) -> None:
        """As Falcon does it."""
        try:
            async for piece in self.viewer:
                self.pieces.append(piece)
                await self.writing.wait()
        finally:
            await self.viewer.close()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


STARTED = {"type": "RUN_STARTED", "threadId": "t", "runId": "r"}
DELTA = {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": '"RUN_FINISHED"'}
FINISHED = {"type": "RUN_FINISHED", "threadId": "t", "runId": "r"}


def piece(offset: int, event: dict[str, Any]) -> bytes:
    return f"id: {offset}\ndata: {json.dumps(event)}\n\n".encode()


async def test_events_with_their_offsets_and_signs_of_life_between() -> None:
    world = World(live=False)
    await world.settle()
    world.log.answer(STARTED, DELTA)
    await world.settle()
    world.log.answer()
    await world.settle()
    world.log.answer(FINISHED, since=2)
    await world.settle()
    world.log.answer()
    await world.settle()
    assert world.pieces == [
        BEGIN,
        piece(1, STARTED) + piece(2, DELTA),
        COMMENT,
        piece(3, FINISHED),
        COMMENT,
    ]
    # While a run lives, the gap is 4 s; else 15 s.
    assert world.log.timeouts == [15.0, 4.0, 4.0, 15.0, 15.0]
    world.viewer.end()
    await world.task
    assert world.closed == ["told"] and world.log.closed == 1


async def test_a_stream_of_one_run_ends_with_it() -> None:
    world = World(once=True)
    world.log.answer(DELTA, FINISHED, STARTED)
    await world.task
    assert world.pieces == [BEGIN, piece(1, DELTA) + piece(2, FINISHED)]
    assert world.closed == ["over"]


@pytest.mark.parametrize(
    ("error", "outcome"), [(Gone(), "passed"), (StoreUnavailable("x"), "store")]
)
async def test_it_ends_where_the_log_does_not_go_on(
    error: Exception, outcome: str
) -> None:
    world = World()
    world.log.fail(error)
    await world.task
    assert world.closed == [outcome] and world.pieces == [BEGIN]


async def test_an_end_while_it_writes_is_after_the_piece() -> None:
    world = World()
    world.writing.clear()
    await world.settle()
    world.log.answer(DELTA)
    world.viewer.end("gone")
    world.writing.set()
    await world.task
    assert world.pieces == [BEGIN] and world.closed == ["gone"]


async def test_an_end_in_the_turn_in_which_events_come() -> None:
    for first in ("events", "end"):
        world = World()
        await world.settle()
        steps: list[Callable[[], object]] = [
            lambda w=world: w.log.answer(DELTA),
            world.viewer.end,
        ]
        for step in steps if first == "events" else reversed(steps):
            step()
        await world.task
        assert world.pieces in ([BEGIN], [BEGIN, piece(1, DELTA)])
        assert world.closed == ["told"] and not world.task.cancelled()


async def test_a_peer_that_takes_nothing_is_cut_off() -> None:
    world = World()
    world.writing.clear()
    await world.settle()
    world.clock.advance(WRITE_TIMEOUT)
    with pytest.raises(asyncio.CancelledError):
        await world.task
    assert world.closed == ["slow"] and world.log.closed == 1


async def test_a_slow_peer_that_takes_something_has_its_time() -> None:
    world = World()
    world.writing.clear()
    await world.settle()
    for _ in range(5):
        world.taken += int(1024 * WRITE_TIMEOUT)
        world.clock.advance(WRITE_TIMEOUT)
        await world.settle()
    assert not world.task.done()
    world.writing.set()
    await world.settle()
    world.clock.advance(100 * WRITE_TIMEOUT)  # it waits for events, not for the peer
    await world.settle()
    assert not world.task.done()
    world.viewer.end()
    await world.task


async def test_the_deadline_in_the_turn_in_which_the_write_ends() -> None:
    world = World()
    world.writing.clear()
    await world.settle()
    world.writing.set()
    world.clock.advance(WRITE_TIMEOUT)
    with pytest.raises(asyncio.CancelledError):
        await world.task
    assert world.closed == ["slow"]


async def test_a_foreign_cancel_is_not_taken_for_an_end() -> None:
    world = World()
    await world.settle()
    world.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await world.task
    assert world.closed == ["gone"] and world.log.closed == 1

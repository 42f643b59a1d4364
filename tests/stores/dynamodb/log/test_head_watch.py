"""Polls and looks: which heads are read, when, and what becomes of what they show."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.core.errors import StoreUnavailable
from service.core.model import Channel, Position
from service.core.ports import History
from service.stores.dynamodb.log import head_watch
from service.stores.dynamodb.log.head_watch import HeadWatch
from service.stores.dynamodb.log.items import Head, encode_head, head_key
from service.stores.dynamodb.log.reader import Reader
from tests.clock import VirtualClock

A, B = Channel("a"), Channel("b")
KEPT = History(100, 60.0)
QUICK, SLOW = head_watch.QUICK, head_watch.SLOW


class Table:
    """A client whose reads are answered when a test says so."""

    table = "t"

    def __init__(self) -> None:
        self.tops: dict[Channel, Position] = {}
        self.reads: list[tuple[list[str], bool, asyncio.Future[Any]]] = []

    async def call(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        assert operation == "batch_get_item"
        wanted = request["RequestItems"]["t"]
        names = [key["pk"]["S"][2:] for key in wanted["Keys"]]
        answer = asyncio.get_running_loop().create_future()
        self.reads.append((names, wanted["ConsistentRead"], answer))
        return await answer

    def seen(self, *names: str) -> dict[str, Any]:
        found = []
        for name in names:
            top = self.tops.get(Channel(name))
            if top is not None:
                head = Head(top.epoch, top.offset, ends=10**15, origin="o")
                found.append(
                    {
                        **head_key(Channel(name)),
                        **encode_head(head),
                        **{k: {"N": "0"} for k in ("floor", "rev", "asks")},
                        "shards": {"N": "1"},
                        "origin": {"S": "o"},
                    }
                )
        return {"Responses": {"t": found}, "UnprocessedKeys": {}}


class Bench:
    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.table = Table()
        reader = Reader(self.table, 1)  # type: ignore[arg-type]
        reader.origin = "o"
        self.moves: list[tuple[Channel, Position]] = []
        self.watch = HeadWatch(
            self.table,  # type: ignore[arg-type]
            reader,
            self.clock,
            lambda channel, top: self.moves.append((channel, top)),
        )

    async def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        for _ in range(5):
            await asyncio.sleep(0)

    async def finish(self, answer: Any = None) -> tuple[list[str], bool]:
        """Answer the oldest read with what is there now; return what it asked."""
        names, consistent, future = self.table.reads.pop(0)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer or self.table.seen(*names))
        await self.turn()
        return names, consistent

    async def pauses(self, count: int) -> list[float]:
        """Return the seconds before each of the next polls."""
        found = []
        for _ in range(count):
            began = self.clock.now()
            while not self.table.reads:
                [due] = self.clock.pending
                await self.turn(due - self.clock.now() + 1e-9)
            found.append(round(self.clock.now() - began, 2))
            await self.finish()
        return found


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    for _, _, future in bench.table.reads:
        future.set_result(bench.table.seen())
    await bench.watch.close()


def at(offset: int, epoch: str = "e") -> Position:
    return Position(offset, epoch)


async def test_polls_are_quick_at_first_and_after_a_change(bench):
    bench.watch.follow(A, KEPT)
    assert await bench.pauses(7) == [0.1, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    bench.table.tops[A] = at(1)
    assert await bench.pauses(3) == [2.0, 0.1, 0.2]
    assert bench.moves[1:] == [(A, at(1))]


async def test_own_publications_and_hints_are_no_change(bench):
    bench.watch.follow(A, KEPT)
    await bench.pauses(6)
    moves = list(bench.moves)
    bench.table.tops[A] = at(3)
    bench.watch.known(A, at(3))
    assert await bench.pauses(2) == [2.0, 2.0]
    bench.table.tops[A] = at(2)  # an eventually consistent read may see less
    assert await bench.pauses(2) == [2.0, 2.0]
    assert bench.moves == moves


async def test_what_is_not_kept_and_what_was_left_is_not_polled(bench):
    bench.watch.follow(A, History(0, 0.0))
    bench.watch.follow(B, KEPT)
    bench.watch.unfollow(B)
    bench.watch.look(A)
    await bench.turn(10)
    assert bench.table.reads == []


async def test_a_covered_channel_is_looked_at_once(bench):
    bench.watch.follow(A, KEPT)
    bench.table.tops[A] = at(1)
    bench.watch.cover(A)
    await bench.turn()
    assert await bench.finish() == (["a"], True)
    assert bench.moves == [(A, at(1))]
    await bench.turn(100)
    assert bench.table.reads == []
    bench.watch.uncover()
    await bench.turn(QUICK)
    assert await bench.finish() == (["a"], False)


async def test_a_look_during_a_look_is_another(bench):
    bench.watch.follow(A, KEPT)
    bench.watch.cover(A)
    await bench.turn()
    old = bench.table.seen("a")
    bench.table.tops[A] = at(1)
    bench.watch.look(A)
    bench.watch.look(A)
    await bench.turn()
    assert len(bench.table.reads) == 2
    await bench.finish(old)
    await bench.finish()
    assert bench.moves[-1] == (A, at(1))
    assert bench.table.reads == []


async def test_lost_and_covered_again_during_a_look(bench):
    bench.watch.follow(A, KEPT)
    bench.watch.cover(A)
    await bench.turn()
    bench.watch.uncover()
    bench.watch.cover(A)
    await bench.turn()
    assert [consistent for _, consistent, _ in bench.table.reads] == [True, True]
    await bench.finish()
    await bench.finish()
    await bench.turn(100)
    assert bench.table.reads == []


@pytest.mark.parametrize("again", [True, False])
async def test_left_during_a_poll(bench, again):
    bench.watch.follow(A, KEPT)
    await bench.turn(QUICK)
    bench.watch.unfollow(A)
    if again:
        bench.watch.follow(A, KEPT)
    bench.table.tops[A] = at(1)
    await bench.finish()
    assert bench.moves == ([(A, at(1))] if again else [])
    await bench.turn(QUICK)
    assert len(bench.table.reads) == again


async def test_a_failure_is_repeated_later(bench):
    bench.watch.follow(A, KEPT)
    await bench.turn(QUICK)
    await bench.finish(StoreUnavailable("x"))
    assert await bench.pauses(1) == [2.0]
    bench.watch.cover(A)
    await bench.turn()
    await bench.finish(StoreUnavailable("x"))
    await bench.turn(SLOW - 0.01)
    assert bench.table.reads == []
    await bench.turn(0.01)
    assert await bench.finish() == (["a"], True)


async def test_what_dynamodb_did_not_get_to_is_read_later(bench):
    bench.watch.follow(A, KEPT)
    bench.watch.follow(B, KEPT)
    await bench.turn(QUICK)
    bench.table.tops |= {A: at(1), B: at(1)}
    answer = bench.table.seen("a")
    answer["UnprocessedKeys"] = {"t": {"Keys": [head_key(B)]}}
    await bench.finish(answer)
    assert bench.moves == [(A, at(1))]
    await bench.turn(SLOW)
    names = [name for names, _, _ in bench.table.reads for name in names]
    assert "b" in names


async def test_many_are_read_in_batches_and_few_at_once(bench):
    channels = [Channel(f"c{n}") for n in range(450)]
    for channel in channels:
        bench.watch.follow(channel, KEPT)
    await bench.turn(QUICK)
    polled: list[str] = []
    for _ in range(5):
        assert 0 < len(bench.table.reads) <= head_watch.AT_ONCE
        assert len(bench.table.reads[0][0]) <= head_watch.BATCH
        polled += (await bench.finish())[0]
    assert sorted(polled) == sorted(channels)


async def test_with_one_that_tells_nobody_covered_channels_are_polled_too(bench):
    bench.watch.follow(A, KEPT)
    bench.watch.cover(A)
    await bench.turn()
    await bench.finish()
    bench.watch.poll_covered("one", True)
    bench.watch.poll_covered("another", True)
    assert (await bench.pauses(3))[0] == 0.1
    bench.watch.poll_covered("one", False)
    assert (await bench.pauses(3))[0] == 0.1
    bench.watch.poll_covered("another", False)
    await bench.turn(100)
    assert bench.table.reads == []


async def test_polls_rest_where_nobody_else_commits_and_go_on_when_one_comes(bench):
    bench.watch.follow(A, KEPT)
    bench.watch.rest(True)
    bench.watch.follow(B, KEPT)
    await bench.turn(100)
    assert bench.table.reads == []
    bench.watch.look(A)  # a doubt is no poll
    await bench.turn()
    assert await bench.finish() == (["a"], True)
    bench.table.tops[B] = Position(1, "e")
    bench.watch.rest(False)
    await bench.turn(QUICK)
    assert await bench.finish() == (["a", "b"], False)
    assert bench.moves[-1] == (B, Position(1, "e"))
    # What is under way when they rest again is used, and is the last.
    await bench.turn(QUICK)
    bench.watch.rest(True)
    bench.table.tops[B] = Position(2, "e")
    while bench.table.reads:
        await bench.finish()
    assert bench.moves[-1] == (B, Position(2, "e"))
    await bench.turn(100)
    assert bench.table.reads == []

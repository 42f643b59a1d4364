"""Pushes that no log keeps, at the gateway: who gets them, their order, what waits."""

import asyncio

import pytest

from service.core.errors import StoreUnavailable
from service.core.model import ClientId
from service.core.ports import Posted, RowState
from service.gateway.passing import WAITING, Passing, PassingPushes
from service.gateway.rounds import FRAME
from tests.gateway.test_rounds import CHANNEL, A, B, Bench


class Sending(Bench):
    """A bench whose reads of the rows can be held back or fail."""

    def __init__(self):
        super().__init__()
        self.tasks = []
        self.reads = []
        self.passing = PassingPushes(
            self.rounds, lambda work: self.tasks.append(asyncio.ensure_future(work))
        )

    async def rows(self, channel):
        if self.reads:
            await self.reads.pop(0)
        return await super().rows(channel)

    def send(self, *pushes, **more):
        for push in pushes:
            self.passing.send(CHANNEL, Passing(push, **more))

    def hold(self, client):
        """Return what the answer of the next POST to the client waits for."""
        answer = future()
        self.answers[client] = [answer]
        return answer

    async def sent(self):
        for task in self.tasks:  # grows meanwhile
            await self.run(task)
        return self.frames


@pytest.fixture
def bench():
    return Sending()


def future():
    return asyncio.get_running_loop().create_future()


async def test_it_goes_to_active_rows(bench):
    bench.subscribe(A)
    bench.subscribe(B, hears_joins=True)
    bench.subscribe(ClientId("c"), state=RowState.PENDING)
    bench.send("push")
    assert await bench.sent() == {A: ["push"], B: ["push"]}
    bench.answers = {B: [Posted.GONE]}
    bench.send("join", joins=True)
    await bench.sent()
    assert B not in bench.table and A in bench.table


async def test_a_client_does_not_get_its_own_join(bench):
    bench.subscribe(A, hears_joins=True)
    bench.subscribe(B, hears_joins=True)
    bench.send("join of a", joins=True, but=A)
    bench.send("join of b", joins=True, but=B)
    assert await bench.sent() == {A: ["join of b"], B: ["join of a"]}


async def test_a_leave_never_comes_before_its_join(bench):
    bench.subscribe(B, hears_joins=True)
    slow = future()
    bench.reads = [slow]
    bench.send("join", joins=True, but=A)
    await bench.settle()
    bench.send("leave", joins=True, but=A)
    await bench.settle()
    assert bench.frames == {}
    slow.set_result(None)
    assert await bench.sent() == {B: ["join\nleave"]}


async def test_what_comes_during_a_post_goes_into_the_next(bench):
    bench.subscribe(A)
    slow = bench.hold(A)
    bench.send("1")
    await bench.settle()
    bench.send("2", "3")
    await bench.settle()
    bench.send("4")
    await bench.settle()
    slow.set_result(Posted.DELIVERED)
    assert await bench.sent() == {A: ["1", "2\n3\n4"]}


async def test_nobody_waits_for_a_slow_client(bench):
    bench.subscribe(A)
    bench.subscribe(B)
    slow = bench.hold(A)
    for push in "123":
        bench.send(push)
        await bench.settle()
    assert bench.frames == {B: ["1", "2", "3"]}
    slow.set_result(Posted.UNKNOWN)  # at most once: not again
    assert (await bench.sent())[A] == ["2\n3"]


async def test_the_oldest_give_way(bench):
    bench.subscribe(A)
    slow = bench.hold(A)
    bench.send("first")
    await bench.settle()
    for number in range(WAITING + 10):
        bench.send(str(number))
        await bench.settle()
    slow.set_result(Posted.DELIVERED)
    (first, rest) = (await bench.sent())[A]
    assert first == "first"
    assert rest.split("\n") == [str(n) for n in range(10, WAITING + 10)]


async def test_a_frame_is_not_too_large(bench):
    bench.subscribe(A)
    pushes = ["a" * FRAME, "b", "c" * (FRAME - 2), "d"]
    bench.send(*pushes)
    assert await bench.sent() == {A: ["a" * FRAME, "b\n" + "c" * (FRAME - 2), "d"]}


async def test_rows_that_cannot_be_read_stop_nothing(bench):
    bench.subscribe(A)
    failing = future()
    failing.set_exception(StoreUnavailable("away"))
    bench.reads = [failing]
    bench.send("lost")
    await bench.settle()
    bench.send("told")
    assert await bench.sent() == {A: ["told"]}

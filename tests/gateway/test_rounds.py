"""Rounds of a holder, on rows and a log that the test holds."""

from __future__ import annotations

import asyncio
import json

import pytest

from service.core.lease import LEASE_SECONDS, POST_SECONDS, ChannelState, Hold
from service.core.model import Channel, ClientId, Position, Publication, RawJson
from service.core.ports import Posted, RowState, SubscriberRow
from service.gateway.rounds import FRAME, Rounds
from tests.clock import VirtualClock

CHANNEL = Channel("news")
A, B = ClientId("a"), ClientId("b")


class Bench:
    """All ports of `Rounds`, in memory.

    Attributes:
        frames: What each client was sent, in order.
        answers: Of the next POSTs to a client; "delivered" without one. A future holds
            the answer back.
        told: Calls that changed something, in order.
    """

    def __init__(self):
        self.clock = VirtualClock()
        self.log: list[Publication] = []
        self.floor = 0
        self.owner = ""
        self.table: dict[ClientId, SubscriberRow] = {}
        self.frames: dict[ClientId, list[str]] = {}
        self.answers: dict[ClientId, list[object]] = {}
        self.told: list[tuple[object, ...]] = []
        self.can_delete = True
        self.serial = 0
        self.rounds = Rounds(
            self,
            self,
            self,
            self,
            self.clock,
            token=self.token,
            forget=self.forget,
        )

    def token(self):
        self.serial += 1
        return f"t{self.serial}"

    async def forget(self, client):
        self.told.append(("forget", client))

    def publish(self, *texts):
        for text in texts:
            data = RawJson(json.dumps(text))
            self.log.append(Publication(len(self.log) + 1, data))

    def subscribe(self, client, offset=0, *, state=RowState.ACTIVE, epoch="e", **more):
        self.table[client] = SubscriberRow(
            client,
            "u",
            RawJson("{}"),
            state=state,
            command=1,
            position=Position(offset, epoch),
            at=int(self.clock.wall() * 1000),
            **more,
        )

    def hold(self, delivered=0, **more):
        self.owner = "t"
        deadline = self.clock.now() + LEASE_SECONDS - POST_SECONDS
        position = Position(delivered, "e")
        return Hold(CHANNEL, "t", position, deadline=deadline, **more)

    def state(self):
        top = Position(len(self.log), "e")
        return ChannelState(top, top, self.floor, self.owner, 0, None)

    def offsets(self, client):
        return [
            message["push"]["pub"]["offset"]
            for frame in self.frames.get(client, ())
            for message in map(json.loads, frame.split("\n"))
            if "pub" in message["push"]
        ]

    # The ports

    async def read(self, channel):
        return self.state()

    async def renew(self, channel, token):
        self.told.append(("renew", token))
        return self.owner == token

    async def release(self, channel, token, state):
        if self.owner != token or state.stored != self.state().stored:
            return self.state()
        self.owner = ""
        return None

    async def claim(self, channel, token, claimed):
        if self.owner != token:
            return None
        self.owner = claimed
        return self.state()

    async def take(self, channel, state, token):
        if self.owner != state.owner:
            return None
        self.owner = token
        return state

    async def between(self, channel, state, since, through):
        kept = [p for p in self.log if max(since, self.floor) < p.offset <= through]
        return kept

    async def rows(self, channel):
        return list(self.table.values())

    async def grant(self, channel, client, command, token):
        self.told.append(("grant", client))
        self.table[client] = self.table[client]._replace(state=RowState.PENDING)
        return True

    async def reset(self, channel, client, command):
        self.table[client] = self.table[client]._replace(state=RowState.LEFT)
        return True

    async def remove(self, channel, client):
        del self.table[client]

    async def post(self, client, frame):
        queue = self.answers.get(client)
        answer = queue.pop(0) if queue else Posted.DELIVERED
        if isinstance(answer, asyncio.Future):
            answer = await answer
        if answer is Posted.DELIVERED:
            self.frames.setdefault(client, []).append(frame)
        self.told.append(("post", client, answer))
        return answer

    async def delete(self, client):
        self.told.append(("delete", client))
        return self.can_delete

    # Time

    async def settle(self):
        for _ in range(20):
            await asyncio.sleep(0)

    async def run(self, work, seconds=0.0):
        """Return what *work* returns; the clock moves until it has ended."""
        task = asyncio.ensure_future(work)
        for _ in range(400):
            await self.settle()
            if task.done():
                return task.result()
            self.clock.advance(0.1)
        raise AssertionError("it does not end")


@pytest.fixture
def bench():
    return Bench()


async def test_each_client_gets_what_it_lacks_and_the_lease_is_released(bench):
    bench.publish("1", "2", "3")
    bench.subscribe(A, 0)
    bench.subscribe(B, 2)
    assert await bench.run(bench.rounds.deliver(bench.hold(0))) is None
    assert bench.offsets(A) == [1, 2, 3]
    assert bench.offsets(B) == [3]
    assert len(bench.frames[A]) == 1
    assert bench.owner == ""


async def test_one_far_behind_catches_up_and_the_others_get_nothing_again(bench):
    bench.publish(*range(200))
    bench.subscribe(A)
    bench.subscribe(B, 10)  # it was seen while it was pending
    hold = bench.hold(delivered=190, seen=frozenset({B}))
    await bench.run(bench.rounds.deliver(hold))
    assert bench.offsets(A) == list(range(191, 201))
    assert bench.offsets(B) == list(range(11, 201))
    assert bench.owner == ""


async def test_a_frame_has_up_to_32_kb(bench):
    bench.publish(*["x" * 10_000] * 7, "y" * 50_000, "z")
    bench.subscribe(A)
    await bench.run(bench.rounds.deliver(bench.hold()))
    assert bench.offsets(A) == list(range(1, 10))
    sizes = [frame.count("\n") + 1 for frame in bench.frames[A]]
    assert sizes == [3, 3, 1, 1, 1]
    assert [len(frame) <= FRAME for frame in bench.frames[A]] == [1, 1, 1, 0, 1]


@pytest.mark.parametrize("outcome", [Posted.UNKNOWN, Posted.BUSY])
async def test_a_post_of_another_outcome_closes_the_connection(bench, outcome):
    bench.publish("1")
    bench.subscribe(A)
    bench.subscribe(B)
    bench.answers = {B: [outcome]}
    await bench.run(bench.rounds.deliver(bench.hold()))
    assert bench.offsets(A) == [1]
    assert [told for told in bench.told if told[1] == B] == [
        ("post", B, outcome),
        ("post", B, Posted.DELIVERED),  # the disconnect push
        ("delete", B),
        ("forget", B),
    ]
    assert "disconnect" in bench.frames[B][0]
    assert list(bench.table) == [A]
    assert bench.owner == ""


async def test_a_client_that_is_gone_is_told_nothing(bench):
    bench.publish("1")
    bench.subscribe(A)
    bench.answers = {A: [Posted.GONE]}
    await bench.run(bench.rounds.deliver(bench.hold()))
    assert bench.frames == {}
    assert bench.table == {}


async def test_a_hold_ends_without_release_if_a_connection_cannot_be_closed(bench):
    bench.publish("1")
    bench.subscribe(A)
    bench.answers = {A: [Posted.UNKNOWN]}
    bench.can_delete = False
    assert await bench.run(bench.rounds.deliver(bench.hold())) is None
    assert bench.owner == "t"
    assert list(bench.table) == [A]


async def test_a_slow_client_does_not_hold_up_the_others(bench):
    bench.publish("1")
    bench.subscribe(A)
    bench.subscribe(B)
    slow = asyncio.get_running_loop().create_future()
    bench.answers = {A: [slow]}
    task = asyncio.ensure_future(bench.rounds.deliver(bench.hold()))
    await bench.settle()
    bench.publish("2")
    for _ in range(12):
        bench.clock.advance(0.1)
        await bench.settle()
    assert bench.offsets(B) == [1, 2]
    assert bench.owner == "t"
    slow.set_result(Posted.DELIVERED)
    await bench.run(task)
    assert bench.offsets(A) == bench.offsets(B) == [1, 2]
    assert bench.owner == ""


async def test_a_long_hold_is_renewed(bench):
    bench.subscribe(A, state=RowState.PENDING)
    task = asyncio.ensure_future(bench.rounds.deliver(bench.hold()))
    for _ in range(80):
        await bench.settle()
        bench.clock.advance(0.1)
    assert bench.told.count(("renew", "t")) == 2
    bench.subscribe(A, 0)
    bench.publish("1")
    await bench.run(task)
    assert bench.offsets(A) == [1]


async def test_a_hold_is_handed_over_when_the_time_is_over(bench):
    bench.publish("1")
    bench.subscribe(A)
    bench.subscribe(B, state=RowState.PENDING)
    hold = bench.hold()
    until = bench.clock.now() + 2.0
    handed = await bench.run(bench.rounds.deliver(hold, until=until))
    assert handed == Hold.restore(json.loads(json.dumps(handed.record())))._replace(
        deadline=handed.deadline
    )
    assert handed.delivered == Position(1, "e")
    assert handed.seen == {B}
    with pytest.raises(ValueError, match="claimed first"):
        await bench.rounds.deliver(handed)
    claimed = await bench.rounds.claim(handed)
    assert await bench.rounds.claim(handed) is None
    bench.subscribe(B, 0)
    await bench.run(bench.rounds.deliver(claimed))
    assert bench.offsets(A) == bench.offsets(B) == [1]
    assert bench.owner == ""


async def test_no_post_begins_after_the_deadline(bench):
    bench.publish("1")
    bench.subscribe(A)
    hold = bench.hold()
    bench.clock.stall(LEASE_SECONDS)
    assert await bench.run(bench.rounds.deliver(hold)) is None
    assert bench.frames == {}
    assert bench.owner == "t"


async def test_a_takeover_closes_all_but_pending_rows(bench):
    bench.publish("1")
    bench.subscribe(A)
    bench.subscribe(B, state=RowState.PENDING)
    hold = bench.hold(takeover=True)
    task = asyncio.ensure_future(bench.rounds.deliver(hold))
    await bench.settle()
    assert list(bench.table) == [B]
    bench.subscribe(B, 1)
    await bench.run(task)
    assert ("delete", A) in bench.told
    assert bench.offsets(A) == bench.offsets(B) == []


async def test_what_cannot_be_served_whole_is_told_or_closed(bench):
    bench.publish("1", "2", "3")
    bench.floor = 2
    bench.subscribe(A, 1)
    bench.subscribe(B, 1, server=True)
    bench.subscribe(ClientId("c"), 2)
    bench.subscribe(ClientId("d"), 3, epoch="before")
    await bench.run(bench.rounds.deliver(bench.hold(1)))
    assert bench.offsets(A) == bench.offsets(B) == bench.offsets(ClientId("d")) == []
    assert bench.offsets(ClientId("c")) == [3]
    assert [bench.table[c].state for c in "acd"] == [
        RowState.LEFT,
        RowState.ACTIVE,
        RowState.LEFT,
    ]
    assert B not in bench.table
    assert '"code":2500' in bench.frames[A][0]


async def test_the_watchdog_takes_what_has_expired(bench):
    bench.publish("1")
    bench.subscribe(A)
    bench.hold()
    hold = await bench.rounds.watch(CHANNEL)
    assert hold.takeover
    bench.subscribe(A, state=RowState.PIECES)
    bench.clock.stall(60.0)
    assert await bench.rounds.watch(CHANNEL) is not None
    assert bench.table == {}

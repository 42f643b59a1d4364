"""The lease of a channel in its HEAD: taken with appends, and what its holder does."""

from __future__ import annotations

import asyncio

import pytest

from service.core.errors import StoreError
from service.core.lease import LEASE_SECONDS, Hold
from service.core.model import Channel, Position
from service.core.ports import History
from service.stores.dynamodb.errors import OutcomeUnknown
from tests.stores.dynamodb.support import Faults, conflict, lost, timed_out

NEWS = Channel("news")
KEPT = History(100, 3600.0)


class Taker:
    """The holder of a store, which only remembers.

    Attributes:
        holds: All that were taken.
    """

    def __init__(self):
        self.hands_over = False
        self.holds: list[Hold] = []

    def took(self, hold):
        self.holds.append(hold)


@pytest.fixture
async def open_taker(open_bench):
    async def opened(**values):
        bench = await open_bench(Faults(), leases=True, **values)
        bench.taker = bench.store.store.holder = Taker()
        bench.leases = bench.store.store.leases
        return bench

    return opened


@pytest.fixture
async def bench(open_taker):
    return await open_taker()


@pytest.fixture
async def other(open_taker):
    return await open_taker()


async def test_an_append_takes_the_lease_of_a_free_channel(bench):
    await bench.append("news", "1")
    (hold,) = bench.taker.holds
    state = await bench.leases.read(NEWS)
    assert state.owner == hold.token
    assert state.duty is None
    assert hold.delivered == Position(0, state.top.epoch)
    assert (hold.takeover, hold.claimed) == (False, True)
    assert hold.state == state
    assert bench.faults.count("TransactWriteItems") == 1


async def test_what_is_appended_while_it_is_held_is_the_holders(bench, other):
    await bench.append("news", "1")
    before = other.faults.count("TransactWriteItems")
    await other.append("news", "2")
    await bench.append("news", "3")
    assert other.taker.holds == []
    assert len(bench.taker.holds) == 1
    assert other.faults.count("TransactWriteItems") == before + 1


async def test_a_release_names_what_was_read(bench, other):
    await bench.append("news", "1")
    (hold,) = bench.taker.holds
    await other.append("news", "2")
    refused = await bench.leases.release(NEWS, hold.token, hold.state)
    assert refused.top.offset == 2
    assert refused.owner == hold.token
    assert await bench.leases.release(NEWS, hold.token, refused) is None
    assert (await bench.leases.read(NEWS)).owner == ""
    await other.append("news", "3")
    (second,) = other.taker.holds
    assert second.delivered.offset == 2
    assert (await bench.leases.release(NEWS, hold.token, refused)).owner == second.token


async def test_a_dead_holders_lease_is_taken_over(bench, other, clock):
    await bench.append("news", "1")
    (hold,) = bench.taker.holds
    clock.advance(LEASE_SECONDS + 1)
    await other.append("news", "2")
    (second,) = other.taker.holds
    assert second.takeover
    assert second.delivered.offset == 2
    assert await bench.leases.renew(NEWS, hold.token) is False


async def test_a_renewed_lease_is_not_dead(bench, other, clock):
    await bench.append("news", "1")
    (hold,) = bench.taker.holds
    clock.advance(LEASE_SECONDS - 1)
    assert await bench.leases.renew(NEWS, hold.token)
    clock.advance(LEASE_SECONDS - 1)
    await other.append("news", "2")
    assert other.taker.holds == []
    state = await bench.leases.read(NEWS)
    assert await bench.leases.take(NEWS, state, "watchdog") is None


async def test_a_hold_that_is_handed_over_is_claimed_once(bench, clock):
    bench.taker.hands_over = True
    await bench.append("news", "1")
    (hold,) = bench.taker.holds
    assert not hold.claimed
    state = await bench.leases.read(NEWS)
    assert state.duty == hold.delivered == Position(0, state.top.epoch)
    claimed = await bench.leases.claim(NEWS, hold.token, "second")
    assert (claimed.owner, claimed.duty, claimed.top.offset) == ("second", None, 1)
    assert await bench.leases.claim(NEWS, hold.token, "third") is None


async def test_a_duty_that_nobody_claimed_is_taken_without_a_takeover(
    bench, other, clock
):
    bench.taker.hands_over = True
    await bench.append("news", "1")
    clock.advance(LEASE_SECONDS + 1)
    await other.append("news", "2")
    (hold,) = other.taker.holds
    assert not hold.takeover
    assert hold.delivered.offset == 0
    assert (await bench.leases.read(NEWS)).duty is None


async def test_the_watchdog_takes_an_expired_lease_with_its_duty(bench, clock):
    bench.taker.hands_over = True
    await bench.append("news", "1")
    clock.advance(LEASE_SECONDS + 1)
    state = await bench.leases.read(NEWS)
    before = await bench.leases.take(NEWS, state, "watchdog")
    assert before.duty == Position(0, state.top.epoch)
    after = await bench.leases.read(NEWS)
    assert (after.owner, after.duty) == ("watchdog", None)
    assert await bench.leases.take(NEWS, state, "another") is None


async def test_until_never_falls(bench, open_taker, clock):
    await bench.append("news", "1")
    (hold,) = bench.taker.holds
    bench.store.clock.ahead = 60.0
    assert await bench.leases.renew(NEWS, hold.token)
    ahead = await bench.leases.read(NEWS)
    bench.store.clock.ahead = 0.0
    assert await bench.leases.renew(NEWS, hold.token)
    assert await bench.leases.read(NEWS) == ahead
    claimed = await bench.leases.claim(NEWS, hold.token, "second")
    assert claimed.until == ahead.until


@pytest.mark.parametrize("call", ["renew", "claim", "release", "take"])
async def test_a_write_whose_answer_was_lost_is_repeated(bench, clock, call):
    await bench.append("news", "1")
    (hold,) = bench.taker.holds
    state = await bench.leases.read(NEWS)
    if call == "take":
        clock.advance(LEASE_SECONDS + 1)
    left = [True]

    def once(operation):
        if operation == "UpdateItem" and left:
            left.pop()
            lost(operation)

    bench.faults.after.append(once)
    leases, token = bench.leases, hold.token
    outcome = await {
        "renew": lambda: leases.renew(NEWS, token),
        "claim": lambda: leases.claim(NEWS, token, "second"),
        "release": lambda: leases.release(NEWS, token, state),
        "take": lambda: leases.take(NEWS, state, "second"),
    }[call]()
    assert not left
    after = await leases.read(NEWS)
    if call == "release":
        assert outcome.owner == after.owner == ""
    else:
        assert outcome
        assert after.owner == (token if call == "renew" else "second")


async def test_a_wrong_guess_is_planned_again_at_once(bench, other, clock):
    await bench.append("news", "1")
    (hold,) = bench.taker.holds

    def release_first(operation):
        if operation == "TransactWriteItems":
            other.faults.before.clear()
            done = asyncio.run_coroutine_threadsafe(
                bench.leases.release(NEWS, hold.token, hold.state), loop
            )
            assert done.result() is None

    loop = asyncio.get_running_loop()
    other.faults.before.append(release_first)
    await other.append("news", "2")
    assert len(other.taker.holds) == 1
    assert other.faults.count("TransactWriteItems") == 2
    assert other.faults.count("UpdateItem") == 0  # no request for precedence


async def test_an_append_without_an_answer_is_looked_up_once(bench, other):
    def late(operation):
        if operation == "TransactWriteItems":
            bench.store.clock.ahead += 60.0
            lost(operation)

    bench.faults.after.append(late)
    appended = await bench.append("news", "1")
    assert appended.position.offset == 1
    (hold,) = bench.taker.holds
    assert (await other.leases.read(NEWS)).owner == hold.token
    # While it is held, nobody can say.
    await bench.leases.renew(NEWS, hold.token)
    with pytest.raises(OutcomeUnknown):
        await bench.append("news", "2")
    assert len(bench.taker.holds) == 1


async def test_an_append_that_was_not_done_is_not_taken_for_done(bench):
    def late(operation):
        if operation == "TransactWriteItems":
            bench.store.clock.ahead += 60.0
            timed_out(operation)

    bench.faults.before.append(late)
    with pytest.raises(StoreError):
        await bench.append("news", "1")
    assert bench.taker.holds == []


async def test_without_a_holder_the_duty_stays_in_head(bench):
    bench.store.store.holder = None
    await bench.append("news", "1")
    state = await bench.leases.read(NEWS)
    assert state.owner
    assert state.duty == Position(0, state.top.epoch)


async def test_a_conflict_does_not_take_two_leases(bench):
    left = [1, 2]

    def meet(operation):
        if operation == "TransactWriteItems" and left:
            left.pop()
            return conflict(2)
        return None

    bench.faults.before.append(meet)
    await bench.append("news", "1")
    assert len(bench.taker.holds) == 1
    assert (await bench.leases.read(NEWS)).owner == bench.taker.holds[0].token


async def test_the_log_is_read_as_it_is_stored(bench, clock):
    short = History(1, 10.0)
    for number in range(5):
        await bench.append("news", str(number), short)
    clock.advance(60.0)
    state = await bench.leases.read(NEWS)
    found = await bench.leases.between(NEWS, state, 1, 4)
    assert [p.offset for p in found] == [2, 3, 4]
    await bench.store.remove(NEWS)
    await bench.append("news", "5", short)
    state = await bench.leases.read(NEWS)
    assert state.floor == 5
    found = await bench.leases.between(NEWS, state, 1, 6)
    assert [p.offset for p in found] == [6]
    assert await bench.leases.between(NEWS, state, 1, 4) == []


async def test_a_fresh_read_sees_what_another_process_has_just_published(bench, other):
    await bench.append("news", "1")
    await bench.read("news")  # the tail is in memory
    await other.append("news", "2")
    assert (await bench.read("news")).top.offset == 1
    page = await bench.store.store.read_fresh(NEWS, KEPT, 0, -1)
    assert [p.offset for p in page.publications] == [1, 2]
    assert page.top.offset == 2

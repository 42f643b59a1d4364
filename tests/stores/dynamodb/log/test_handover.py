"""Appends handed to the owner of a channel, and what can go wrong on the way.

*There* owns the channel; *here* loses against it twice, and hands over. The broker is
the test's: it keeps messages back, loses them, and delivers them twice.
"""

from __future__ import annotations

import asyncio
import threading
import time

import msgspec
import pytest

from service.core.errors import StoreError
from service.core.ports import History
from service.stores.dynamodb.errors import OutcomeUnknown
from service.stores.dynamodb.log import appender, handover
from service.stores.dynamodb.log.items import head_key
from tests.stores.dynamodb.log.support import stored
from tests.stores.dynamodb.log.wire import Wire, WireBroker
from tests.stores.dynamodb.support import Faults, lost, refusal, timed_out

SHORT = 0.05  # s; nobody is going to answer
LONG = 60.0  # s; somebody will, or nobody has to wait


class World:
    """Processes on one table, and the wire between them."""

    def __init__(self, open_bench):
        self.wire = Wire()
        self._open = open_bench

    async def process(self, name, **options):
        bench = await self._open(
            Faults(), broker=WireBroker(self.wire, name), **options
        )
        bench.broker = self.wire.processes[name]
        bench.name = name
        return bench

    def nobody_answers(self):
        """Let the broker be lost for the newest request: it may have arrived."""
        kinds = [msgspec.msgpack.decode(message.data)[0] for message in self.wire.sent]
        asks = [
            m for m, kind in zip(self.wire.sent, kinds, strict=True) if kind == "ask"
        ]
        asks[-1].failed(True)

    async def contend(self, here, there, data="a", channel="a", **draft):
        """Append *here*, after *there* has won against it twice."""
        loop = asyncio.get_running_loop()
        left = ["won", "won"]

        async def win():
            await there.append(channel, left[-1])
            left.pop()

        def lose(operation):
            if operation == "TransactWriteItems" and left:
                asyncio.run_coroutine_threadsafe(win(), loop).result(60)

        here.faults.before.append(lose)
        done = here.append(channel, data, **draft)
        async with asyncio.timeout(60):
            while left:
                await asyncio.sleep(0.001)
        return done


@pytest.fixture
def world(open_bench, monkeypatch):
    monkeypatch.setattr(handover, "WAIT", LONG)
    return World(open_bench)


@pytest.fixture
async def there(world):
    there = await world.process("there")
    await there.append("a", "first")
    return there


@pytest.fixture
async def here(world, there):
    return await world.process("here")


async def owner(bench):
    request = {"TableName": bench.store.client.table, "Key": head_key("a")}
    answer = await bench.store.client.call("get_item", request)
    return answer["Item"]["by"]["S"]


def writes(bench):
    return bench.faults.count("TransactWriteItems")


async def test_a_writer_that_loses_twice_hands_over_and_goes_on_so(world, here, there):
    outcome = await (await world.contend(here, there))
    assert outcome.fresh and outcome.position.offset == 4
    assert writes(here) == 2  # both lost
    more = [here.append("a", str(n)) for n in range(3)]
    outcomes = await asyncio.gather(*more)
    assert [o.position.offset for o in outcomes] == [5, 6, 7]
    assert writes(here) == 2 and len(world.wire.sent) == 4  # two requests and answers
    assert await stored(there) == ["first", "won", "won", "a", "0", "1", "2"]
    assert await stored(here) == await stored(there)
    assert await owner(here) == "there.1"
    assert here.told == []  # hints tell its subscribers, and the hearer was told


async def test_after_a_while_it_writes_itself_again(world, here, there):
    await (await world.contend(here, there))
    here.store.clock.ahead += handover.STICKY * 1.2
    await here.append("a", "b")
    assert writes(here) == 3 and len(world.wire.sent) == 2


async def test_a_channel_with_one_writer_pays_nothing(world, open_bench):
    alone = await world.process("alone")
    plain = await open_bench(Faults())
    for bench, channel in ((alone, "a"), (plain, "b")):
        for n in range(3):
            await bench.append(channel, str(n))
    assert alone.faults.calls == plain.faults.calls
    assert not world.wire.sent
    updates = [
        request["TransactItems"][0]["Update"]["UpdateExpression"]
        for operation, request in alone.faults.requests
        if operation == "TransactWriteItems"
    ]
    assert ["#by" in update for update in updates] == [True, False, False]


@pytest.mark.parametrize("stores", [False, True])
async def test_an_owner_dies_before_or_after_its_transaction(
    world, here, there, monkeypatch, stores
):
    """The request, or the answer to it, never comes."""
    if not stores:
        monkeypatch.setattr(handover, "WAIT", SHORT)
    world.wire.holds.add("there" if stores else "here")
    done = await world.contend(here, there)
    if stores:
        await world.wire.until_held()  # the answer: it is stored
        world.nobody_answers()
    outcome = await done
    assert outcome.fresh and outcome.position.offset == 4
    assert await stored(there) == ["first", "won", "won", "a"]
    await here.append("a", "b")
    assert await stored(here) == ["first", "won", "won", "a", "b"]
    assert (await owner(here)).startswith("here.")


async def test_an_owner_that_is_gone_is_replaced_without_a_wait(world, here, there):
    del world.wire.processes["there"]
    outcome = await (await world.contend(here, there))
    assert outcome.position.offset == 4
    assert (await owner(here)).startswith("here.")
    assert await stored(here) == ["first", "won", "won", "a"]


async def test_a_broker_that_says_nobody_has_a_request_may_be_wrong(world, here, there):
    """As it says to one at the primary of what it gives to another at a replica."""
    world.wire.holds.update(("here", "there"))
    done = await world.contend(here, there)
    request = await world.wire.until_held()
    world.wire.deliver(request)
    await world.wire.until_held()  # the answer: it is stored
    request.failed(False)
    outcome = await done
    assert outcome.fresh and outcome.position.offset == 4
    assert (await owner(here)).startswith("here.")
    assert await stored(here) == ["first", "won", "won", "a"]


@pytest.mark.parametrize("still", ["before", "planned", "sent"])
async def test_an_owner_that_stood_still_is_fenced_off(world, here, there, still):
    """It goes on after another process took over, or between the fence and that."""
    go = threading.Event()
    world.wire.holds.add("here")
    done = await world.contend(here, there)
    held = await world.wire.until_held()
    world.wire.holds.clear()

    def wait(operation):
        if operation == "TransactWriteItems":
            go.wait(60)

    def let_go(operation):
        if operation == "TransactWriteItems":
            go.set()
            while not answers(world):
                time.sleep(0.001)

    if still != "before":
        there.faults.before.append(wait)
        before = writes(there)
        world.wire.deliver(held)
        async with asyncio.timeout(60):
            while writes(there) == before:
                await asyncio.sleep(0.001)
    if still == "sent":
        here.faults.before.append(let_go)
    world.nobody_answers()
    first = await done
    second = await here.append("a", "b")
    assert first.position.offset + 1 == second.position.offset
    go.set()
    if still == "before":
        world.wire.deliver(held)
    await there.append("a", "c")
    async with asyncio.timeout(60):
        while not answers(world):
            await asyncio.sleep(0.001)
    assert "moved" in answers(world)[-1]
    assert await stored(here) == ["first", "won", "won", "a", "b", "c"]


def answers(world):
    """Return what *there* has answered."""
    return [
        msgspec.msgpack.decode(message.data)
        for message in world.wire.sent
        if message.sender == "there"
    ]


async def test_a_late_answer_and_copies_change_nothing(world, here, there):
    world.wire.holds.update(("here", "there"))
    done = await world.contend(here, there)
    request = await world.wire.until_held()
    world.wire.deliver(request)
    world.wire.deliver(request)
    answer = await world.wire.until_held()
    world.nobody_answers()
    outcome = await done
    world.wire.deliver(answer)
    world.wire.deliver(request)
    world.wire.deliver(answer)
    world.wire.holds.clear()
    assert outcome.fresh and outcome.position.offset == 4
    await there.append("a", "b")
    assert await stored(here) == ["first", "won", "won", "a", "b"]
    assert not world.wire.held  # copies were not answered


async def test_an_answer_of_another_process_does_not_count(world, here, there):
    world.wire.holds.update(("here", "there"))
    done = await world.contend(here, there)
    world.wire.deliver(await world.wire.until_held())
    answer = await world.wire.until_held()
    here.broker.received("another", answer.data)
    here.broker.received("there", b"of another version")
    await asyncio.sleep(0)
    assert not done.done()
    world.wire.deliver(answer)
    assert (await done).position.offset == 4


async def test_the_refusal_of_one_that_is_not_the_owner_names_the_owner(
    world, here, there
):
    await (await world.contend(here, there))
    third = await world.process("third")
    world.wire.holds.add("third")
    done = await world.contend(third, there, "b")
    await world.wire.until_held()
    world.nobody_answers()
    await done
    world.wire.holds.clear()
    assert (await owner(here)).startswith("third.")
    there.store.clock.ahead += 1  # and its memory of HEAD is old
    outcome = await here.append("a", "c")
    assert outcome.fresh
    assert [m.to for m in world.wire.sent[-4:]] == ["there", "here", "third", "here"]
    assert (await stored(here))[-2:] == ["b", "c"]
    assert writes(here) == 2


async def test_the_broker_dies_while_an_answer_is_awaited(world, here, there):
    world.wire.holds.add("here")
    done = await world.contend(here, there)
    held = await world.wire.until_held()
    here.broker.die()
    assert (await done).position.offset == 4
    assert await owner(here) == handover.NOBODY
    world.wire.deliver(held)  # it was on its way
    await here.append("a", "b")
    assert await stored(here) == ["first", "won", "won", "a", "b"]
    there.store.clock.ahead += 1
    await there.append("a", "c")
    assert (await owner(here)).startswith("there.")


async def test_nothing_is_appended_before_the_fence(world, open_bench, there):
    """A later append does not overtake one that waits for the fence."""
    here = await world.process("here", timeout=4.0)
    world.wire.holds.add("here")
    done = await world.contend(here, there)
    held = await world.wire.until_held()

    def unreachable(operation):
        if operation == "UpdateItem":
            return refusal("ProvisionedThroughputExceededException")
        return None

    here.faults.before.append(unreachable)
    world.nobody_answers()
    here.store.clock.ahead += 3.5  # the batch's time is nearly over
    with pytest.raises(OutcomeUnknown):
        await done
    with pytest.raises(StoreError):
        later = here.append("a", "never")
        here.store.clock.ahead += 3.5
        await later
    here.faults.before.remove(unreachable)
    await there.append("a", "between")
    assert (await here.append("a", "b")).position.offset == 5
    world.wire.deliver(held)
    await there.append("a", "c")
    assert await stored(there) == ["first", "won", "won", "between", "b", "c"]


async def test_the_fence_may_be_stored_without_an_answer(world, here, there):
    world.wire.holds.add("here")
    done = await world.contend(here, there)
    await world.wire.until_held()
    once = ["UpdateItem"]

    def lose(operation):
        if operation in once:
            once.remove(operation)
            lost(operation)

    here.faults.after.append(lose)
    world.nobody_answers()
    assert (await done).position.offset == 4 and not once
    assert await stored(here) == ["first", "won", "won", "a"]


async def test_a_key_of_the_publisher_holds_across_a_lost_answer(world, here, there):
    world.wire.holds.add("there")
    done = await world.contend(here, there, idempotency_key="k")
    await world.wire.until_held()
    world.nobody_answers()
    first = await done
    assert first.fresh  # it is this publication that is stored
    for bench in (here, there):
        again = await bench.append("a", "again", idempotency_key="k")
        assert again == (first.position, False)
    assert await stored(here) == ["first", "won", "won", "a"]


async def test_what_the_log_cannot_tell_any_more_is_unknown(world, here, there):
    world.wire.holds.add("there")
    done = await world.contend(here, there)
    await world.wire.until_held()
    await there.store.remove("a")
    world.nobody_answers()
    with pytest.raises(OutcomeUnknown):
        await done
    assert (await here.append("a", "b")).position.offset == 5


async def test_what_is_removed_while_it_is_looked_for_is_not_written_again(
    world, here, there
):
    loop = asyncio.get_running_loop()
    left = ["Query"]

    def remove(operation):
        if operation in left:
            left.remove(operation)
            coroutine = there.store.remove("a")
            asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    world.wire.holds.add("there")
    done = await world.contend(here, there)
    await world.wire.until_held()  # it is stored
    here.faults.before.append(remove)
    world.nobody_answers()
    with pytest.raises(OutcomeUnknown):
        await done
    assert not left
    page = await there.read("a", 0)
    assert page.top.offset == 4 and not page.publications


@pytest.mark.parametrize("bound", ["ACCEPTED", "SENDERS", "closed"])
async def test_one_that_takes_no_more_is_not_waited_for(
    world, here, there, monkeypatch, bound
):
    if bound == "closed":
        world.wire.holds.add("here")
    else:
        monkeypatch.setattr(handover, bound, 0)
    done = await world.contend(here, there)
    if bound == "closed":
        held = await world.wire.until_held()
        broker = there.broker
        await there.store.close()
        broker.received("here", held.data)
    if bound == "SENDERS":
        async with asyncio.timeout(60):
            while not world.wire.sent:
                await asyncio.sleep(0.001)
        world.nobody_answers()
    assert (await done).position.offset == 4
    assert await stored(here) == ["first", "won", "won", "a"]


async def test_no_part_is_stored_behind_one_that_failed(world, there, monkeypatch):
    monkeypatch.setattr(appender, "BATCH", 2)
    left = ["TransactWriteItems"]

    def invalid(operation):
        if operation in left:
            left.remove(operation)
            return refusal("ValidationException")
        return None

    there.faults.before.append(invalid)
    WireBroker(world.wire, "here")
    rows = [handover.Row(str(n), None, None, "", 0, "", False, False) for n in "1234"]
    request = handover.Request(1, "a", "there.1", 1.0, 100, 60.0, 60.0, rows)
    there.broker.received("here", msgspec.msgpack.encode(request))
    async with asyncio.timeout(60):
        while not world.wire.sent:
            await asyncio.sleep(0.001)
    assert "refused" in msgspec.msgpack.decode(world.wire.sent[0].data)
    assert not left and writes(there) == 2  # the first publication, and the first part
    assert await stored(there) == ["first"]


async def test_a_transaction_that_its_owner_gave_up_arrives_late(world, here, there):
    """The owner has answered that it failed, since it had no answer itself."""
    done = await world.contend(here, there)
    await done
    late, ended = [], []
    boto = Faults().connect(there.store.settings)

    def keep(operation):
        if operation == "TransactWriteItems":
            late.append(there.faults.requests[-1][1])
            there.store.clock.ahead += 2 * LONG
            timed_out(operation)

    def arrive(operation):
        if operation == "TransactWriteItems":
            ended.append(sent_late(boto, late.pop()))

    there.faults.before.append(keep)
    here.faults.before.append(arrive)
    outcome = await here.append("a", "b")
    there.faults.before.clear()
    assert ended == ["TransactionCanceledException"] and outcome.position.offset == 5
    assert "failed" in answers(world)[-1]
    assert await stored(here) == ["first", "won", "won", "a", "b"]


def sent_late(boto, request):
    """Send a transaction; return what came of it."""
    try:
        boto.transact_write_items(**request)
    except boto.exceptions.TransactionCanceledException as error:
        return type(error).__name__
    return "stored"


@pytest.mark.parametrize("here_too", [False, True])
async def test_a_part_that_the_owner_has_stored_is_not_written_again(
    world, there, monkeypatch, here_too
):
    """The rest cannot be written there, nor perhaps here."""
    here = await world.process("here", timeout=4.0)
    await (await world.contend(here, there))
    world.wire.holds.add("here")
    done = [here.append("a", str(n)) for n in range(4)]
    request = await world.wire.until_held()
    monkeypatch.setattr(appender, "BATCH", 2)
    first = ["TransactWriteItems"]

    def second_fails(operation):
        if operation in first:
            first.remove(operation)
        elif operation == "TransactWriteItems":
            return refusal("ValidationException")
        return None

    def full(operation):
        if operation == "TransactWriteItems" and here_too:
            here.store.clock.ahead += 4
            return refusal("ProvisionedThroughputExceededException")
        return None

    there.faults.before.append(second_fails)
    here.faults.before.append(full)
    world.wire.deliver(request)
    outcomes = await asyncio.gather(*done, return_exceptions=True)
    positions = [
        0 if isinstance(outcome, StoreError) else outcome.position.offset
        for outcome in outcomes
    ]
    assert positions == ([5, 6, 0, 0] if here_too else [5, 6, 7, 8])
    there.faults.before.clear()
    found = ["first", "won", "won", "a", "0", "1", "2", "3"]
    assert await stored(there) == found[: 6 if here_too else 8]


async def test_what_cannot_be_handed_over_is_written_here(world, here, there):
    brief = History(100, handover.KEPT / 2)
    outcome = await (await world.contend(here, there, history=brief))
    assert outcome.position.offset == 4 and not world.wire.sent
    large = '"' + "x" * handover.BYTES + '"'
    assert (await here.append("a", large)).position.offset == 5
    assert not world.wire.sent


async def test_two_that_hand_over_to_each_other_do_not_wait(world):
    """Each has one slot, and owns the channel of the other."""
    one = await world.process("one", connections=1)
    two = await world.process("two", connections=1)
    await one.append("a", "0")
    await two.append("b", "0")
    world.wire.holds.add("two")
    waiting = await world.contend(two, one, channel="a")
    held = await world.wire.until_held()
    assert (await two.append("b", "1")).fresh  # nothing of *two* waits for that answer
    world.wire.holds.clear()
    world.wire.deliver(held)
    await waiting
    await (await world.contend(one, two, channel="b"))
    world.wire.sent.clear()
    outcomes = await asyncio.gather(
        *[two.append("a", str(n)) for n in range(9)],
        *[one.append("b", str(n)) for n in range(9)],
    )
    assert all(outcome.fresh for outcome in outcomes)
    assert len(world.wire.sent) == 4

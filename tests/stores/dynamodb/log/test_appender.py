"""Appends under faults: each is stored at most once, and its caller is told so."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.core.errors import StoreBusy, StoreError, StoreUnavailable
from service.core.model import Appended, Position
from service.stores.dynamodb.errors import OutcomeUnknown, Throttled
from tests.stores.dynamodb.log.support import die, stored, writing
from tests.stores.dynamodb.support import (
    Faults,
    conflict,
    lost,
    refusal,
    timed_out,
)

BEFORE = {
    "throttled": lambda _: refusal("ThrottlingException"),
    "hot partition": lambda _: refusal("ProvisionedThroughputExceededException"),
    "conflict": lambda _: conflict(2),
    "in progress": lambda _: refusal("TransactionInProgressException"),
    "internal error": lambda _: refusal("InternalServerError", 500),
    "not sent": timed_out,
}


AFTER = {"answer lost": lost, "answer late": timed_out}


@pytest.mark.requirement("B33")
@pytest.mark.parametrize("name", [*BEFORE, *AFTER])
async def test_a_fault_that_passes_is_not_noticed(bench, other, name):
    await bench.append("a", "0")
    if name in BEFORE:
        bench.faults.before.append(writing(2, BEFORE[name]))
    else:
        bench.faults.after.append(writing(2, AFTER[name]))
    keys = ["", "k", "", "l", "k"]
    done = [
        bench.append("a", str(n), idempotency_key=key)
        for n, key in enumerate(keys, start=1)
    ]
    outcomes = await asyncio.gather(*done)
    assert [o.position.offset for o in outcomes] == [2, 3, 4, 5, 3]
    assert [o.fresh for o in outcomes] == [True, True, True, True, False]
    assert await stored(bench) == await stored(other) == ["0", "1", "2", "3", "4"]
    assert bench.told_of("a") == [1, 2, 3, 4, 5]


@pytest.mark.requirement("B37")
async def test_the_order_is_kept_across_faults(bench):
    for fault in BEFORE.values():
        bench.faults.before.append(writing(1, fault))
    bench.faults.after.append(writing(1, lost))
    done = [bench.append("a", str(n)) for n in range(90)]  # two batches
    outcomes = await asyncio.gather(*done)
    assert [o.position.offset for o in outcomes] == list(range(1, 91))
    assert await stored(bench) == [str(n) for n in range(90)]
    assert bench.told_of("a") == list(range(1, 91))


async def test_an_answer_that_never_comes_leaves_the_outcome_unknown(open_bench, other):
    bench = await open_bench(Faults(), timeout=0.3)
    await bench.append("a", "0")
    bench.faults.after.append(writing(1, timed_out))
    with pytest.raises(OutcomeUnknown):
        await bench.append("a", "1", idempotency_key="k")
    # It was done: whoever repeats it learns where, and nobody gets its offset.
    again = await other.append("a", "again", idempotency_key="k")
    assert again == Appended(Position(2, again.position.epoch), False)
    assert (await bench.append("a", "2")).position.offset == 3
    assert await stored(other) == ["0", "1", "2"]
    assert bench.told_of("a") == [1, 3]  # a reader sees the gap, and reads


async def test_a_request_that_arrives_late_comes_first_or_not_at_all(
    open_bench, other, bench
):
    """An attempt that was given up is still on its way when the next one is made."""
    late = []

    def keep(operation):
        if operation == "TransactWriteItems" and not late:
            late.append(slow.faults.requests[-1][1])
            timed_out(operation)

    slow = await open_bench(Faults(), timeout=0.3)
    await slow.append("a", "0")
    slow.faults.before.append(keep)
    with pytest.raises(OutcomeUnknown):
        await slow.append("a", "late")
    assert (await slow.append("a", "1")).position.offset == 2
    boto = slow.faults.connect(slow.store.settings)
    with pytest.raises(boto.exceptions.TransactionCanceledException):
        boto.transact_write_items(**late[0])
    assert await stored(other) == ["0", "1"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_task_that_dies_fails_what_waits_and_the_channel_works_again(
    bench, other, when
):
    await bench.append("a", "0")
    getattr(bench.faults, when).append(writing(1, die))
    done = [bench.append("a", str(n)) for n in range(1, 101)]  # two batches
    removed = asyncio.ensure_future(bench.store.remove("a"))
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*done, removed, return_exceptions=True)
    sent, waiting = outcomes[:64], outcomes[64:100]
    assert isinstance(outcomes[100], StoreUnavailable)
    assert {type(o) for o in sent} == {OutcomeUnknown}
    assert {type(o) for o in waiting} == {StoreUnavailable}
    before = 1 if when == "before" else 65
    assert (await bench.append("a", "again")).position.offset == before + 1
    assert await stored(other) == [*map(str, range(before)), "again"]
    assert await stored(bench) == await stored(other)


async def test_a_task_that_is_cancelled_holds_up_neither_its_channel_nor_the_close(
    bench, other
):
    await bench.append("a", "0")
    tests = asyncio.all_tasks()
    done = [bench.append("a", str(n)) for n in range(100)]
    (task,) = asyncio.all_tasks() - tests
    task.cancel()  # before its first step
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*done, return_exceptions=True)
    assert {type(o) for o in outcomes} == {StoreUnavailable}
    assert (await bench.append("a", "1")).position.offset == 2

    held = threading.Event()
    bench.faults.before.append(writing(1, lambda _: held.wait(10) and None))
    lost = bench.append("a", "2")
    (task,) = asyncio.all_tasks() - tests
    while bench.faults.count("TransactWriteItems") < 3:
        await asyncio.sleep(0.01)
    closing = asyncio.ensure_future(bench.store.close())
    await asyncio.sleep(0)
    task.cancel()
    held.set()
    async with asyncio.timeout(10):
        await closing
    assert type(lost.exception()) is OutcomeUnknown
    assert (await stored(other))[:2] == ["0", "1"]


@pytest.mark.requirement("B61")
async def test_what_is_throttled_to_the_end_is_refused_and_not_stored(
    open_bench, other
):
    bench = await open_bench(Faults(), timeout=0.5)
    bench.faults.before.append(writing(10**9, BEFORE["throttled"]))
    outcomes = await asyncio.gather(
        *[bench.append("a", str(n)) for n in range(100)], return_exceptions=True
    )
    assert {type(o) for o in outcomes} <= {Throttled, StoreBusy}
    assert await stored(other) == []
    assert bench.store.fault() is None  # throttling is not a failure of the table
    bench.faults.before.clear()
    assert (await bench.append("a")).position.offset == 1


@pytest.mark.requirement("R15")
async def test_while_the_breaker_is_open_publishes_fail_at_once(bench):
    await bench.append("a", "0")
    bench.faults.before.append(
        lambda operation: refusal("AccessDeniedException") if down else None
    )
    down = True
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await bench.append("a")
    assert bench.store.client.breaker.state == "open"
    assert bench.store.fault() == "DynamoDB: AccessDeniedException"
    sent = len(bench.faults.calls)
    done = [bench.append(f"c{n % 7}") for n in range(100)]
    for outcome in await asyncio.gather(*done, return_exceptions=True):
        assert isinstance(outcome, StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        await bench.read("b")
    assert len(bench.faults.calls) <= sent + 1  # perhaps a probe
    down = False
    while bench.store.fault() is not None:
        await asyncio.sleep(0.05)
    assert (await bench.append("a", "1")).position.offset == 2
    assert await stored(bench) == ["0", "1"]


async def test_a_process_that_was_overtaken_needs_one_more_call(bench, other):
    await bench.append("a", "0")
    await other.append("a", "1")
    before = bench.faults.count("TransactWriteItems")
    assert (await bench.append("a", "2")).position.offset == 3
    assert bench.faults.count("TransactWriteItems") == before + 2
    # What the table says of leases, and the first HEAD; no more.
    assert bench.faults.count("GetItem") == 2
    assert await stored(bench) == await stored(other) == ["0", "1", "2"]


async def test_a_key_that_another_process_used_is_known(bench, other):
    first = await other.append("a", "0", idempotency_key="k")
    keys = ["", "k", "l", "k"]
    done = [bench.append("a", str(n), idempotency_key=k) for n, k in enumerate(keys)]
    outcomes = await asyncio.gather(*done)
    assert [o.position.offset for o in outcomes] == [2, 1, 3, 1]
    assert outcomes[1] == outcomes[3] == Appended(first.position, False)
    assert await stored(other) == ["0", "0", "2"]


async def test_versions_count_over_all_processes(bench, other):
    assert (await bench.append("a", version=5)).fresh
    assert (await other.append("a", version=7)).fresh
    assert (await bench.append("a", version=6)) == Appended(
        Position(2, (await other.read("a")).top.epoch), False
    )
    assert (await bench.append("a", version=8)).position.offset == 3


@pytest.mark.parametrize(
    "bad", [{"data": '"\ud800"'}, {"version": 1, "version_epoch": "\ud800"}]
)
async def test_one_that_cannot_be_stored_fails_alone(bench, bad):
    draft = {"data": "2", **bad}
    done = [bench.append("a", **each) for each in ({"data": "1"}, draft, {"data": "3"})]
    outcomes = await asyncio.gather(*done, return_exceptions=True)
    assert type(outcomes[1]) is StoreError
    assert [outcomes[0].position.offset, outcomes[2].position.offset] == [1, 2]
    assert await stored(bench) == ["1", "3"]


async def test_a_batch_is_one_transaction(bench):
    await bench.append("a")
    before = len(bench.faults.calls)
    await asyncio.gather(*[bench.append("a", str(n)) for n in range(64)])
    assert len(bench.faults.calls) == before + 1
    await asyncio.gather(*[bench.append("a", str(n)) for n in range(65)])
    assert len(bench.faults.calls) == before + 3


async def test_a_busy_process_lets_the_others_in(bench, open_bench):
    """One that never stops has the new top sooner than the others, each time."""
    others = [await open_bench(Faults()) for _ in range(3)]
    going = True

    async def go_on():
        while going:
            await asyncio.gather(*[bench.append("a", "busy") for _ in range(8)])

    task = asyncio.ensure_future(go_on())
    await bench.append("a")
    for n in range(10):
        outcomes = await asyncio.gather(*[o.append("a", f"{n}") for o in others])
        assert len({o.position.offset for o in outcomes}) == 3
    going = False
    await task
    asked = [o.faults.count("UpdateItem") for o in others]
    sent = [o.faults.count("TransactWriteItems") for o in others]
    assert all(sent[n] <= 100 for n in range(3)), (asked, sent)

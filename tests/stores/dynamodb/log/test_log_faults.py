"""The log when calls fail: nothing twice, nothing lost, everybody told the truth."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest

from service.core.errors import StoreBusy, StoreError, StoreUnavailable
from service.core.model import Appended, HistoryPage, Position
from service.core.ports import History
from service.stores.dynamodb.errors import OutcomeUnknown, Throttled
from tests.clock import VirtualClock
from tests.stores.dynamodb.mishaps import Death
from tests.stores.dynamodb.support import (
    Faults,
    StoreClock,
    TableStore,
    conflict,
    lost,
    refusal,
    served,
    timed_out,
)
from tests.stores.support import Bench


class SkewedClock(StoreClock):
    """Of a machine whose time is wrong."""

    skew = 0.0

    def wall(self):
        return super().wall() + self.skew


@pytest.fixture
async def open_bench(ministack, clock):
    """Open stores of processes that share one table."""
    settings = ministack.settings(timeout=60.0)
    opened = []

    async def open_bench(faults=None, timeout=60.0, make_clock=StoreClock, **bounds):
        values = {"table": settings.table, "timeout": timeout, **bounds}
        store = TableStore(
            ministack.settings(**values), make_clock(clock), faults, seed=len(opened)
        )
        bench = await Bench(store, clock).start()
        bench.faults = faults
        opened.append(bench)
        return bench

    yield open_bench
    for bench in opened:
        await bench.store.close()


@pytest.fixture
async def bench(open_bench):
    return await open_bench(Faults())


@pytest.fixture
async def other(open_bench):
    """Return a store in another process, without faults."""
    return await open_bench()


def writing(count, fault):
    """Return a fault of the next *count* transactions."""
    left = [count]

    def once(operation):
        if operation != "TransactWriteItems" or not left[0]:
            return None
        left[0] -= 1
        return fault(operation)

    return once


async def stored(bench, channel="a"):
    """Return the data of a channel, whose offsets are dense."""
    bench.store.clock.ahead += 0.11  # what was read before is not believed any more
    page = await bench.read(channel, 0)
    assert [p.offset for p in page.publications] == list(range(1, page.top.offset + 1))
    return [p.data for p in page.publications]


BEFORE = {
    "throttled": lambda _: refusal("ThrottlingException"),
    "hot partition": lambda _: refusal("ProvisionedThroughputExceededException"),
    "conflict": lambda _: conflict(2),
    "in progress": lambda _: refusal("TransactionInProgressException"),
    "internal error": lambda _: refusal("InternalServerError", 500),
    "not sent": timed_out,
}
AFTER = {"answer lost": lost, "answer late": timed_out}


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


def die(operation):
    raise Death


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


async def test_a_read_that_fails_says_so_and_the_next_one_works(bench):
    await bench.append("a", "0")
    await asyncio.sleep(0.11)
    bench.faults.before.append(lambda operation: refusal("AccessDeniedException"))
    with pytest.raises(StoreUnavailable):
        await bench.read("a")
    bench.faults.before.clear()
    assert await stored(bench) == ["0"]


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_read_whose_task_dies_fails_and_the_next_one_works(bench, cancelled):
    await bench.append("a", "0")
    bench.store.clock.ahead += 0.11
    if not cancelled:
        bench.faults.before.append(die)
    tests = asyncio.all_tasks()
    reads = [asyncio.ensure_future(bench.read("a")) for _ in range(3)]
    await asyncio.sleep(0)
    if cancelled:
        (task,) = asyncio.all_tasks() - tests - {*reads}
        task.cancel()  # before its first step
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(o) for o in outcomes} == {StoreUnavailable}
    bench.faults.before.clear()
    assert await stored(bench) == ["0"]


async def test_nothing_is_read_that_could_be_stale(bench):
    # An eventually consistent read may be of any age: none decides anything.
    for n in range(70):
        await bench.append("a" if n % 2 else "b", str(n), idempotency_key=str(n % 9))
    bench.store.clock.ahead += 0.11
    for since in (None, 0, 20):
        await bench.read("a", since, 10)
        await bench.read("a", since, 10, reverse=True)
    await bench.store.remove("a")
    await bench.store.erase("{")
    reads = [r for o, r in bench.faults.requests if o in ("GetItem", "Query", "Scan")]
    assert len(reads) > 5
    assert all(request["ConsistentRead"] is True for request in reads)


async def test_appends_do_not_wait_for_the_reads_of_thousands_of_channels(open_bench):
    """As when a process looks whether it has missed something in any of them."""
    bench = await open_bench(Faults())
    await bench.append("a", "0")
    release = threading.Event()

    def held(operation):
        if operation != "GetItem":
            return None
        assert release.wait(60)
        return served("{}")

    bench.faults.before.append(held)
    reads = [asyncio.ensure_future(bench.read(f"c{n}", None, 0)) for n in range(3000)]
    try:
        await asyncio.sleep(0.1)  # each is on its way
        async with asyncio.timeout(10):
            for n in range(1, 11):
                assert (await bench.append("a", str(n))).position.offset == n + 1
        assert not any(read.done() for read in reads)
    finally:
        release.set()
        pages = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(page) for page in pages} == {HistoryPage}
    bench.faults.before.clear()
    assert await stored(bench) == [str(n) for n in range(11)]


# Several processes


async def test_a_process_that_was_overtaken_needs_one_more_call(bench, other):
    await bench.append("a", "0")
    await other.append("a", "1")
    before = bench.faults.count("TransactWriteItems")
    assert (await bench.append("a", "2")).position.offset == 3
    assert bench.faults.count("TransactWriteItems") == before + 2
    assert bench.faults.count("GetItem") == 1  # the first HEAD, and no more
    assert await stored(bench) == await stored(other) == ["0", "1", "2"]


async def test_a_key_that_another_process_used_is_known(bench, other):
    first = await other.append("a", "0", idempotency_key="k")
    keys = ["", "k", "l", "k"]
    done = [bench.append("a", str(n), idempotency_key=k) for n, k in enumerate(keys)]
    outcomes = await asyncio.gather(*done)
    assert [o.position.offset for o in outcomes] == [2, 1, 3, 1]
    assert outcomes[1] == outcomes[3] == Appended(first.position, False)
    assert await stored(other) == ["0", "0", "2"]


async def test_what_another_process_published_is_read_soon(bench, other):
    await bench.append("a", "0")
    assert len((await bench.read("a")).publications) == 1
    await other.append("a", "1")
    assert await stored(bench) == ["0", "1"]
    await other.append("a", "2")
    await other.append("a", "3")
    assert await stored(bench) == ["0", "1", "2", "3"]


async def test_what_another_process_removed_is_not_read_for_long(bench, other):
    history = History(1000, 3600.0)
    await bench.append("a", "0", history)
    await other.store.remove("a")
    # However busy the channel is here: what is believed is looked at every 4 s.
    for _ in range(101):
        await bench.append("a", "1", history)
        bench.store.clock.ahead += 0.04  # it is believed to end where it does
    assert 1 not in await bench.offsets("a", history=history)


async def test_what_another_process_erased_is_not_read_for_long(bench, other):
    history = History(1000, 3600.0)
    info = '{"user":"u"'
    await bench.append("a", "1", history, info=info + "}")
    await bench.append("a", "2", history)
    assert await other.store.erase(info) == 1
    for _ in range(101):
        await bench.append("a", "3", history)
        bench.store.clock.ahead += 0.04  # it is believed to end where it does
    page = await bench.read("a", 0, 2, history=history)
    assert [(p.data, p.info) for p in page.publications] == [
        ("null", None),
        ("2", None),
    ]


async def test_versions_count_over_all_processes(bench, other):
    assert (await bench.append("a", version=5)).fresh
    assert (await other.append("a", version=7)).fresh
    assert (await bench.append("a", version=6)) == Appended(
        Position(2, (await other.read("a")).top.epoch), False
    )
    assert (await bench.append("a", version=8)).position.offset == 3


# Clocks, and what becomes of items


async def test_times_never_fall_though_a_clock_is_set_back(open_bench, clock):
    bench = await open_bench(make_clock=SkewedClock)
    await bench.append("a", "0")
    late = await open_bench(make_clock=SkewedClock)
    late.store.clock.skew = -3600.0
    await late.append("a", "1")
    bench.store.clock.ahead += 0.11
    page = await bench.read("a", 0)
    assert [p.data for p in page.publications] == ["0", "1"]
    times = [p.time for p in page.publications]
    assert times == sorted(times)


async def test_an_epoch_ends_for_all_when_it_ends_for_the_first(open_bench, bench):
    before = (await bench.append("a", "0")).position
    ahead = await open_bench(make_clock=SkewedClock)
    ahead.store.clock.skew = 40 * 86400.0
    restarted = (await ahead.append("a", "1")).position
    assert restarted.offset == 1 and restarted.epoch != before.epoch
    # The others have it from HEAD, whatever their own clock says.
    after = (await bench.append("a", "2")).position
    assert after == Position(2, restarted.epoch)
    assert await stored(bench) == ["1", "2"]


async def test_a_head_that_was_lost_gives_no_offset_twice(bench, open_bench):
    first = (await bench.append("a", "0")).position
    boto = bench.faults.connect(bench.store.settings)
    boto.delete_item(
        TableName=bench.store.settings.table,
        Key={"pk": {"S": "H#a"}, "sk": {"S": "HEAD"}},
    )
    for each in (bench, await open_bench()):
        position = (await each.append("a", "1")).position
        assert position.epoch != first.epoch
    assert await stored(bench) == ["1", "1"]


async def test_a_restored_table_is_in_other_epochs(ministack, bench, open_bench, clock):
    first = (await bench.append("a", "0")).position
    unpublished = (await bench.read("b")).top
    boto = bench.faults.connect(bench.store.settings)
    copy = await open_bench(Faults(), table=ministack.settings().table)
    for item in boto.scan(TableName=bench.store.settings.table)["Items"]:
        boto.put_item(TableName=copy.store.settings.table, Item=item)
    top = (await copy.read("a")).top
    assert top.offset == 0 and top.epoch != first.epoch
    assert (await copy.append("a", "1")).position == Position(1, top.epoch)
    assert (await copy.read("b")).top.epoch != unpublished.epoch


async def test_batches_deleted_in_any_order_leave_no_hole(bench):
    history = History(100, 10.0)
    for n in range(8):
        await bench.append("a", str(n), history)
    boto = bench.faults.connect(bench.store.settings)
    epoch = (await bench.read("a")).top.epoch
    for offset in (2, 5):  # in the middle, as DynamoDB may
        boto.delete_item(
            TableName=bench.store.settings.table,
            Key={"pk": {"S": f"L#a#{epoch}"}, "sk": {"S": f"{offset:016d}"}},
        )
    fresh = await bench_of(bench)  # the other one has it all in memory
    assert await fresh.offsets("a", history=history) == [6, 7, 8]
    assert (await fresh.append("a", "8", history)).position.offset == 9
    await fresh.store.close()


async def bench_of(bench):
    store = TableStore(bench.store.settings, StoreClock(VirtualClock()))
    return await Bench(store, bench.clock).start()


async def test_a_publication_larger_than_an_item_is_stored_in_parts(bench, other):
    noise = "".join(random.Random(1).choices("0123456789abcdef", k=800_000))
    for data in ("1", f'"{noise}"', "3"):
        await bench.append("a", data)
    page = await other.read("a", 0)
    assert [len(p.data) for p in page.publications] == [1, 800_002, 1]
    page = await other.read("a", None, 2, reverse=True)
    assert [p.offset for p in page.publications] == [3, 2]
    assert page.publications[1].data == f'"{noise}"'
    await other.store.erase('{"user":"nobody"')
    assert await other.store.erase("") == 0


async def test_large_publications_are_erased_too(bench, other):
    noise = "".join(random.Random(2).choices("0123456789abcdef", k=800_000))
    await bench.append("a", f'"{noise}"', info='{"user":"u"}')
    await bench.append("a", "2", info='{"user":"v"}')
    assert await bench.store.erase('{"user":"u"') == 1
    assert await bench.store.erase('{"user":"u"') == 0
    page = await other.read("a", 0)
    assert [(p.data, p.info) for p in page.publications] == [
        ("null", None),
        ("2", '{"user":"v"}'),
    ]


async def test_one_that_cannot_be_stored_fails_alone(bench):
    done = [bench.append("a", d) for d in ("1", '"\ud800"', "3")]
    outcomes = await asyncio.gather(*done, return_exceptions=True)
    assert type(outcomes[1]) is StoreError
    assert [outcomes[0].position.offset, outcomes[2].position.offset] == [1, 2]
    assert await stored(bench) == ["1", "3"]


# Cost


async def test_a_reconnect_storm_costs_a_handful_of_reads(bench, other):
    for n in range(50):
        await other.append("a", str(n))
    before = len(bench.faults.calls)
    pages = await asyncio.gather(*[bench.read("a", 10, 64) for _ in range(10_000)])
    assert all(len(page.publications) == 40 for page in pages)
    assert len(bench.faults.calls) - before <= 3  # HEAD, and one query
    bench.store.clock.ahead += 0.11
    before = len(bench.faults.calls)
    await asyncio.gather(*[bench.read("a", 10, 64) for _ in range(10_000)])
    assert len(bench.faults.calls) - before == 1  # HEAD: nothing has happened


async def test_a_batch_is_one_transaction(bench):
    await bench.append("a")
    before = len(bench.faults.calls)
    await asyncio.gather(*[bench.append("a", str(n)) for n in range(64)])
    assert len(bench.faults.calls) == before + 1
    await asyncio.gather(*[bench.append("a", str(n)) for n in range(65)])
    assert len(bench.faults.calls) == before + 3


async def test_batches_are_deflated_when_it_pays(bench, other):
    text = '"' + "the same words again and again, " * 8 + '"'
    await asyncio.gather(*[bench.append("a", text) for n in range(32)])
    await bench.append("a", text)
    batches = [
        action["Put"]["Item"]
        for operation, request in bench.faults.requests
        if operation == "TransactWriteItems"
        for action in request["TransactItems"]
        if "Put" in action
    ]
    assert ["z" in item for item in batches] == [True, False]
    assert await stored(other) == [text] * 33


async def test_a_hot_channel_is_spread_over_partitions(open_bench):
    bench = await open_bench(Faults(), shards=4)
    plain = await open_bench()  # shards=1: what HEAD says counts
    for _ in range(5):
        await asyncio.gather(*[bench.append("a", str(n)) for n in range(64)])
    partitions = {
        action["Put"]["Item"]["pk"]["S"][-2:]
        for operation, request in bench.faults.requests
        if operation == "TransactWriteItems"
        for action in request["TransactItems"]
        if "Put" in action
    }
    assert partitions == {"#0", "#1", "#2", "#3"}
    await plain.append("a", "last")
    large = History(1000, 60.0)
    for reader in (bench, plain):
        reader.store.clock.ahead += 0.11
        assert await reader.offsets("a", 0, history=large) == list(range(1, 322))
        assert await reader.offsets("a", 100, 70, history=large) == list(
            range(101, 171)
        )
        assert await reader.offsets("a", 200, 70, history=large, reverse=True) == list(
            range(199, 129, -1)
        )
    await plain.store.remove("a")
    bench.store.clock.ahead += 4.1
    assert await bench.offsets("a", history=large) == []


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

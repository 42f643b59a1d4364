"""Reads of the table: consistent, without holes, over all shards."""

from __future__ import annotations

import asyncio

from service.core.ports import History
from tests.clock import VirtualClock
from tests.stores.dynamodb.support import (
    Faults,
    StoreClock,
    TableStore,
)
from tests.stores.support import Bench


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

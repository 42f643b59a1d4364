"""Planned batches: times never fall, and no offset is given twice."""

from __future__ import annotations

from service.core.model import Position
from tests.stores.dynamodb.log.support import SkewedClock, stored


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

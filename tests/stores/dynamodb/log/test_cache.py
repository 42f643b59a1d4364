"""Reads from memory: how old they may be, what they cost, and when they fail."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.core.errors import StoreUnavailable
from service.core.model import HistoryPage
from service.core.ports import History
from tests.stores.dynamodb.log.support import die, stored
from tests.stores.dynamodb.support import (
    Faults,
    refusal,
    served,
)


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

"""Contract of the Store port: reads, retention, epochs, removing, restart, close."""

from __future__ import annotations

import asyncio

import pytest

from service.core.errors import StoreBusy, StoreUnavailable
from service.core.model import Appended, Position
from service.core.ports import History
from tests.stores.support import CHAT, DURABLE, FACTORIES, MONTH, Bench

# Reads


def expected(top, size, since, limit, reverse):
    kept = range(max(top - size, 0) + 1, top + 1)
    if reverse:
        found = [n for n in reversed(kept) if since is None or n < since]
    else:
        found = [n for n in kept if since is None or n > since]
    return found[:limit] if limit >= 0 else found


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("limit", [-1, 0, 1, 3, 20, 100])
async def test_read_and_peek_with_every_combination(bench, limit, reverse):
    await bench.fill("a", 20)
    for size in (0, 1, 5, 20, 100):
        history = History(size, 60.0)
        for since in (None, 0, 1, 4, 15, 19, 20, 21, 50):
            wanted = expected(20, size, since, limit, reverse)
            page = await bench.read("a", since, limit, history=history, reverse=reverse)
            case = f"size {size}, since {since}"
            assert [p.offset for p in page.publications] == wanted, case
            assert [p.data for p in page.publications] == [str(n) for n in wanted], case
            assert page.top.offset == 20
            if not reverse:
                peeked = bench.store.peek("a", history, since or 0, limit)
                if peeked is not None:
                    assert [p.offset for p in peeked.publications] == wanted, case
                    assert peeked.top == page.top


async def test_memory_knows_what_has_had_a_publication(bench):
    assert not bench.store.knows("a")
    await bench.read("a", None, 10)  # nothing is there
    assert not bench.store.knows("a")
    await bench.fill("a", 1)
    if bench.store.peek("a", CHAT, 0, 0) is not None:  # None without a cache
        assert bench.store.knows("a")
    assert not bench.store.knows("b")
    await bench.append("c", "1", history=History(0, 0.0))  # nothing is kept of it
    assert not bench.store.knows("c")


@pytest.mark.parametrize("since", [None, 0, 5])
@pytest.mark.parametrize("limit", [-1, 0, 5])
@pytest.mark.parametrize("reverse", [False, True])
async def test_a_channel_never_published_to_reads_as_empty(
    bench, since, limit, reverse
):
    page = await bench.read("a", since, limit, reverse=reverse)
    assert page.publications == []
    assert page.top.offset == 0


async def test_pages_of_a_long_history_in_both_directions(bench):
    long = History(5000, 60.0)
    await bench.fill("a", 3000, long)
    forward, since = [], 0
    while page := await bench.offsets("a", since, 300, history=long):
        forward += page
        since = page[-1]
    backward, since = [], None
    while page := await bench.offsets("a", since, 300, history=long, reverse=True):
        backward += page
        since = page[-1]
    assert forward == list(range(1, 3001))
    assert backward == list(range(3000, 0, -1))


async def test_what_a_reader_does_to_its_page_does_not_show_in_others(bench):
    await bench.fill("a", 5)
    pages = await asyncio.gather(*[bench.read("a") for _ in range(3)])
    pages[0].publications.clear()
    assert len(pages[1].publications) == len(pages[2].publications) == 5
    assert await bench.offsets("a") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "name",
    [
        # ministack fails at it, and so is asked again until the deadline.
        pytest.param(each, marks=[pytest.mark.slow] if each == "ministack" else [])
        for each in FACTORIES
    ],
)
async def test_a_channel_name_that_is_not_text_fails_alone(tmp_path, clock, name):
    deadline = {"timeout": 4.0} if name == "ministack" else {}
    store = FACTORIES[name](tmp_path, clock, **deadline)
    bench = await Bench(store, clock).start()
    with pytest.raises(StoreUnavailable):
        await bench.read("\ud800")
    with pytest.raises(StoreUnavailable):
        await bench.store.remove("\ud800")
    assert await bench.offsets("a") == []
    assert bench.store.fault() is None
    await store.close()


# Retention


async def test_no_more_than_size_are_read(bench):
    short = History(3, 60.0)
    for n in range(10):
        await bench.append("a", str(n), short)
        assert await bench.offsets("a", history=short) == list(
            range(max(1, n - 1), n + 2)
        )


async def test_publications_older_than_ttl_are_not_read(bench):
    await bench.fill("a", 2)
    bench.clock.advance(30.0)
    await bench.fill("a", 2)
    bench.clock.advance(29.999)
    assert await bench.offsets("a") == [1, 2, 3, 4]
    bench.clock.advance(0.001)
    assert await bench.offsets("a") == [3, 4]
    assert await bench.offsets("a", 0, 1) == [3]
    assert await bench.offsets("a", 4, -1, reverse=True) == [3]
    bench.clock.advance(30.0)
    page = await bench.read("a")
    assert (page.publications, page.top.offset) == ([], 4)


async def test_the_top_outlives_the_publications(bench):
    epoch = (await bench.append("a")).position.epoch
    await bench.fill("a", 4)
    bench.clock.advance(61.0)
    await bench.sweep()
    assert (await bench.read("a")).top == Position(5, epoch)
    assert (await bench.append("a")).position == Position(6, epoch)
    assert await bench.offsets("a") == [6]


async def test_offsets_restart_in_another_epoch_when_the_top_has_expired(bench):
    epoch = (await bench.append("a")).position.epoch
    bench.clock.advance(100.0)
    await bench.sweep()
    bench.clock.advance(MONTH - 161.0)
    await bench.sweep()
    assert (await bench.read("a")).top == Position(1, epoch)
    bench.clock.advance(1.0)
    await bench.sweep()
    page = await bench.read("a")
    assert page.top.offset == 0
    assert page.top.epoch != epoch
    restarted = (await bench.append("a")).position
    assert restarted == Position(1, page.top.epoch)


async def test_an_append_keeps_the_top_alive(bench):
    short = History(10, 5.0, meta_ttl=100.0)
    for n in range(1, 6):
        bench.clock.advance(60.0)
        await bench.sweep()
        assert (await bench.append("a", "1", short)).position.offset == n


async def test_a_shorter_ttl_applies_to_what_is_stored(bench):
    await bench.fill("a", 5)
    bench.clock.advance(10.0)
    assert await bench.offsets("a", history=History(100, 10.0)) == []
    assert await bench.offsets("a") == [1, 2, 3, 4, 5]


async def test_a_ttl_of_0_keeps_none_and_counts_on(bench):
    nothing = History(10, 0.0)
    for n in range(1, 4):
        assert (await bench.append("a", "1", nothing)).position.offset == n
    page = await bench.read("a", history=nothing)
    assert (page.publications, page.top.offset) == ([], 3)


async def test_times_without_end_are_taken(bench):
    endless = History(10, float("inf"), float("inf"))
    await bench.append("a", "1", endless)
    bench.clock.advance(10 * MONTH)
    await bench.sweep()
    assert await bench.offsets("a", history=endless) == [1]


# Epochs


async def test_a_channel_never_published_to_has_the_epoch_it_will_have(bench):
    before = (await bench.read("a")).top
    assert before == Position(0, before.epoch)
    assert before.epoch not in ("", "_")
    assert (await bench.append("a")).position == Position(1, before.epoch)
    assert (await bench.read("a")).top == Position(1, before.epoch)


async def test_epochs_survive_a_restart(reopen):
    bench = await reopen()
    published = (await bench.append("a")).position.epoch
    unpublished = (await bench.read("b")).top.epoch
    bench = await reopen()
    assert (await bench.read("a")).top == Position(1, published)
    assert (await bench.read("b")).top == Position(0, unpublished)


async def test_a_channel_that_expires_does_not_change_the_epoch_of_another(bench):
    other = (await bench.read("unpublished")).top
    await bench.append("a", "1", History(10, 1.0, meta_ttl=10.0))
    bench.clock.advance(40.0)
    await bench.sweep()
    assert (await bench.read("a")).top.offset == 0
    assert (await bench.read("unpublished")).top == other


# Removing


async def test_remove_deletes_the_publications_and_nothing_else(bench):
    await bench.fill("a", 5)
    await bench.fill("b", 2)
    top = (await bench.read("a", 0, 0)).top
    await bench.store.remove("a")
    assert await bench.read("a") == ([], top)
    assert await bench.offsets("a", 3) == []
    assert await bench.offsets("b") == [1, 2]
    assert (await bench.append("a")).position == Position(6, top.epoch)
    assert await bench.offsets("a") == [6]


async def test_a_page_that_lies_wholly_in_what_was_removed_is_empty(bench):
    await bench.fill("a", 5)
    await bench.store.remove("a")
    await bench.fill("a", 3)
    for since in range(7):
        assert await bench.offsets("a", since, reverse=True) == []
    assert await bench.offsets("a", 7, reverse=True) == [6]


async def test_remove_comes_after_the_appends_before_it(bench):
    before = [bench.append("a") for _ in range(5)]
    removed = asyncio.ensure_future(bench.store.remove("a"))
    await asyncio.sleep(0)
    after = [bench.append("a") for _ in range(3)]
    await asyncio.gather(*before, removed, *after)
    assert await bench.offsets("a") == [6, 7, 8]


async def test_remove_of_an_unknown_channel_does_nothing(bench):
    before = (await bench.read("a")).top
    await bench.store.remove("a")
    assert (await bench.read("a")).top == before


async def test_the_channel_removed_last_does_not_give_its_ids_again(reopen):
    bench = await reopen()
    await bench.fill("a", 5)
    await bench.store.remove("a")
    bench = await reopen()
    assert (await bench.append("a")).position.offset == 6


# Restarting, refusing, closing


async def test_everything_survives_a_restart(reopen):
    bench = await reopen()
    await bench.fill("a", 50)
    await bench.fill("b", 3)
    top = (await bench.read("a")).top
    bench = await reopen()
    page = await bench.read("a")
    assert [p.data for p in page.publications] == [str(n) for n in range(1, 51)]
    assert page.top == top
    assert await bench.offsets("b") == [1, 2, 3]
    assert (await bench.append("a")).position == Position(51, top.epoch)


@pytest.mark.parametrize("factory", DURABLE.values(), ids=DURABLE.keys())
async def test_a_full_queue_refuses_and_loses_nothing(tmp_path, clock, factory):
    store = factory(tmp_path, clock, queue_size=20_000)
    bench = await Bench(store, clock).start()
    done = [bench.append("a", '"' + "x" * 1000 + '"') for _ in range(100)]
    outcomes = await asyncio.gather(*done, return_exceptions=True)
    refused = [o for o in outcomes if isinstance(o, StoreBusy)]
    accepted = [o for o in outcomes if isinstance(o, Appended)]
    assert len(refused) + len(accepted) == 100
    assert refused
    assert [o.position.offset for o in accepted] == list(range(1, len(accepted) + 1))
    assert (await bench.append("a")).position.offset == len(accepted) + 1
    assert bench.store.fault() is None
    await bench.store.close()


async def test_a_payload_above_the_queue_bound_is_accepted_alone(tmp_path, clock):
    for factory in DURABLE.values():
        store = factory(tmp_path, clock, queue_size=1000)
        bench = await Bench(store, clock).start()
        assert (await bench.append("a", '"' + "x" * 5000 + '"')).fresh
        await bench.store.close()


async def test_close_commits_what_was_accepted(reopen):
    bench = await reopen()
    done = [bench.append("a") for _ in range(500)]
    await bench.store.close()
    assert all(future.done() for future in done)
    assert [future.result().position.offset for future in done] == list(range(1, 501))
    bench = await reopen()
    assert (await bench.read("a")).top.offset == 500


async def test_a_closed_store_refuses_everything(bench):
    assert bench.store.fault() is None
    await bench.fill("a", 3)  # which the cache could still answer
    await bench.store.close()
    await bench.store.close()
    await assert_refuses(bench)


async def assert_refuses(bench):
    for call in (
        bench.append("a"),
        bench.read("a"),
        bench.read("a", 1, 1, reverse=True),
        bench.store.remove("a"),
        bench.store.erase("{"),
    ):
        with pytest.raises(StoreUnavailable):
            await call
    assert bench.store.peek("a", CHAT, 0, -1) is None
    assert bench.store.fault() is not None


async def test_two_closes_at_once_end_together(bench):
    done = [bench.append("a") for _ in range(50)]
    await asyncio.gather(bench.store.close(), bench.store.close())
    assert all(future.done() for future in done)


async def test_a_store_that_was_not_started_refuses(tmp_path, clock):
    for factory in DURABLE.values():
        bench = Bench(factory(tmp_path, clock), clock)
        await assert_refuses(bench)
        await bench.store.close()
        await assert_refuses(bench)

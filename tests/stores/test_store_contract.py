"""What every store promises: the Store port, sentence by sentence."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import StoreBusy, StoreUnavailable
from service.model import Appended, Draft, Position
from service.ports import History
from tests.stores.support import CHAT, DURABLE, MONTH, Bench

NO_HISTORY = History(0, 0.0)


# Offsets


async def test_offsets_are_dense_under_200_concurrent_appenders(bench):
    async def appender(name):
        return [(await bench.append("a", f'"{name}"')).position for _ in range(10)]

    found = await asyncio.gather(*[appender(name) for name in range(200)])
    offsets = [[position.offset for position in one] for one in found]
    everyone = sorted(offset for one in offsets for offset in one)
    assert everyone == list(range(1, 2001))
    assert all(one == sorted(one) for one in offsets)
    assert bench.told_of("a") == list(range(1, 2001))
    assert len({position.epoch for one in found for position in one}) == 1


async def test_two_channels_interleaved_have_offsets_of_their_own(bench):
    async def appender(n):
        for _ in range(5):
            await bench.append("even" if n % 2 == 0 else "odd")

    await asyncio.gather(*[appender(n) for n in range(200)])
    assert bench.told_of("even") == list(range(1, 501))
    assert bench.told_of("odd") == list(range(1, 501))


async def test_appends_commit_in_the_order_of_the_calls(bench):
    done = [bench.append(f"c{n % 3}", str(n)) for n in range(600)]
    outcomes = await asyncio.gather(*done)
    assert [o.position.offset for o in outcomes] == [n // 3 + 1 for n in range(600)]
    assert [c.publication.data for c in bench.told] == [str(n) for n in range(600)]


async def test_many_channels_in_one_batch(bench):
    outcomes = await asyncio.gather(*[bench.append(f"c{n}") for n in range(500)])
    assert {o.position.offset for o in outcomes} == {1}
    outcomes = await asyncio.gather(*[bench.append(f"c{n}") for n in range(500)])
    assert {o.position.offset for o in outcomes} == {2}


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 63, 64, 65, 127, 300, 511, 1200])
async def test_batches_of_every_size_arrive_whole(bench, count):
    large = History(2000, 60.0)
    await bench.append("a", "0", large)
    await asyncio.gather(*[bench.append("a", str(n), large) for n in range(count)])
    page = await bench.read("a", 1, history=large)
    assert [p.data for p in page.publications] == [str(n) for n in range(count)]
    assert [p.offset for p in page.publications] == list(range(2, count + 2))


async def test_a_publication_comes_back_as_it_was_given(bench):
    data = '{"text":"\u00e5\u4f60\U0001f600 \\u0000"}'
    await bench.append("a", data, info='{"user":"u"}', tags='{"t":"1"}')
    await bench.append("a", "null")
    first, second = (await bench.read("a")).publications
    assert (first.offset, first.data) == (1, data)
    assert (first.info, first.tags) == ('{"user":"u"}', '{"t":"1"}')
    assert first.time == 1_700_000_000_000
    assert (second.data, second.info, second.tags) == ("null", None, None)


async def test_times_are_those_of_the_append(bench):
    await bench.append("a")
    bench.clock.advance(1.5)
    await bench.append("a")
    times = [p.time for p in (await bench.read("a")).publications]
    assert times == [1_700_000_000_000, 1_700_000_001_500]


# The listener and the callers


async def test_done_is_never_called_from_inside_append(bench):
    for history in (CHAT, NO_HISTORY):
        called = []
        bench.store.append("a", Draft("1"), history, called.append)
        assert called == []
        await bench.append("a", history=history)
        assert len(called) == 1


async def test_the_listener_is_told_before_the_callers(bench):
    seen = []
    done = []
    for n in range(50):
        future = asyncio.get_running_loop().create_future()

        def finish(outcome, future=future):
            seen.append((outcome.position.offset, bench.told_of("a")))
            future.set_result(None)

        bench.store.append("a", Draft(str(n)), CHAT, finish)
        done.append(future)
    await asyncio.gather(*done)
    assert all(offset in told for offset, told in seen)
    assert [offset for offset, _ in seen] == list(range(1, 51))


async def test_each_commit_is_told_once_as_one_list(bench):
    await asyncio.gather(*[bench.append("a") for _ in range(300)])
    assert sum(bench.commits) == 300
    assert 0 not in bench.commits
    assert len(bench.commits) < 300


async def test_what_the_listener_was_told_of_a_read_sees(bench):
    peeked = []
    reads = []

    def hook(committed):
        for channel, publication, _ in committed:
            offset = publication.offset
            page = bench.store.peek(channel, CHAT, offset - 1, 1)
            if page is not None:
                peeked.append((offset, page))
            read = asyncio.ensure_future(bench.read(channel, offset - 1, 1))
            reads.append((offset, read))

    await bench.read("a")  # so that there is something to be out of date
    bench.hook = hook
    await asyncio.gather(*[bench.append("a") for _ in range(40)])
    found = peeked + [(offset, await read) for offset, read in reads]
    assert len(reads) == 40
    for offset, page in found:
        assert [p.offset for p in page.publications] == [offset]
        assert page.top.offset >= offset


async def test_a_listener_that_raises_does_not_stop_the_callers(bench):
    def hook(committed):
        raise ValueError("on purpose")

    bench.hook = hook
    outcomes = await asyncio.gather(*[bench.append("a") for _ in range(10)])
    assert [o.position.offset for o in outcomes] == list(range(1, 11))


async def test_a_caller_that_raises_does_not_stop_the_others(bench):
    def bad(outcome):
        raise ValueError("on purpose")

    first = bench.append("a")
    bench.store.append("a", Draft("1"), CHAT, bad)
    last = bench.append("a")
    assert (await first).position.offset == 1
    assert (await last).position.offset == 3


# Channels without history


async def test_without_history_nothing_is_stored(bench):
    outcome = await bench.append("a", '"x"', NO_HISTORY)
    assert outcome == Appended(Position(0, ""), True)
    ((channel, publication, epoch),) = bench.told
    assert (channel, publication.offset, publication.time, epoch) == ("a", 0, 0, "")
    assert publication.data == '"x"'
    page = await bench.read("a")
    assert (page.publications, page.top.offset) == ([], 0)


async def test_without_history_the_order_is_kept(bench):
    done = [bench.append("a", str(n), NO_HISTORY) for n in range(100)]
    await asyncio.gather(*done)
    assert [c.publication.data for c in bench.told] == [str(n) for n in range(100)]


async def test_without_history_an_idempotency_key_still_counts(bench):
    outcomes = await asyncio.gather(
        *[bench.append("a", "1", NO_HISTORY, idempotency_key="k") for _ in range(3)]
    )
    assert [o.fresh for o in outcomes] == [True, False, False]
    assert {o.position for o in outcomes} == {Position(0, "")}
    again = await bench.append("a", "1", NO_HISTORY, idempotency_key="k")
    assert again == Appended(Position(0, ""), False)
    assert len(bench.told) == 1


async def test_with_and_without_history_in_one_batch(bench):
    done = [bench.append("a", str(n), (CHAT, NO_HISTORY)[n % 2]) for n in range(10)]
    outcomes = await asyncio.gather(*done)
    assert [o.position.offset for o in outcomes] == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert [c.publication.data for c in bench.told] == [str(n) for n in range(10)]


# Idempotency


async def test_a_repeated_key_publishes_nothing_and_gives_the_first_position(bench):
    await bench.append("a")
    first = await bench.append("a", "1", idempotency_key="k")
    await bench.append("a")
    again = await bench.append("a", "2", idempotency_key="k")
    assert (first.fresh, again.fresh) == (True, False)
    assert again.position == first.position == Position(2, first.position.epoch)
    assert bench.told_of("a") == [1, 2, 3]


async def test_a_key_repeated_within_one_batch(bench):
    keys = ["k", "", "k", "l", "k", "", "l"]
    done = [bench.append("a", str(n), idempotency_key=k) for n, k in enumerate(keys)]
    outcomes = await asyncio.gather(*done)
    assert [o.position.offset for o in outcomes] == [1, 2, 1, 3, 1, 4, 3]
    assert [o.fresh for o in outcomes] == [
        k not in keys[:n] or k == "" for n, k in enumerate(keys)
    ]
    assert bench.told_of("a") == [1, 2, 3, 4]


async def test_a_known_key_among_fresh_ones_keeps_the_others_dense(bench):
    await bench.append("a", idempotency_key="7")
    done = [bench.append("a", str(n), idempotency_key=str(n)) for n in range(40)]
    outcomes = await asyncio.gather(*done)
    assert [o.fresh for o in outcomes] == [n != 7 for n in range(40)]
    assert bench.told_of("a") == list(range(1, 41))


async def test_a_key_belongs_to_one_channel(bench):
    one = await bench.append("a", idempotency_key="k")
    other = await bench.append("b", idempotency_key="k")
    assert one.fresh and other.fresh


async def test_a_key_is_forgotten_after_300_seconds(bench):
    await bench.append("a", idempotency_key="k")
    bench.clock.advance(299.999)
    assert not (await bench.append("a", idempotency_key="k")).fresh
    bench.clock.advance(0.001)
    assert (await bench.append("a", idempotency_key="k")).position.offset == 2
    assert not (await bench.append("a", idempotency_key="k")).fresh


async def test_a_key_survives_a_restart(reopen):
    first = await (await reopen()).append("a", idempotency_key="k")
    again = await (await reopen()).append("a", idempotency_key="k")
    assert again == Appended(first.position, False)


# Versions


async def test_a_version_that_is_not_above_the_newest_is_skipped(bench):
    versions = [5, 5, 4, 6, 1, 7]
    outcomes = [await bench.append("a", str(v), version=v) for v in versions]
    assert [o.fresh for o in outcomes] == [True, False, False, True, False, True]
    assert [o.position.offset for o in outcomes] == [1, 1, 1, 2, 2, 3]
    assert [p.data for p in (await bench.read("a")).publications] == ["5", "6", "7"]


async def test_versions_within_one_batch(bench):
    done = [bench.append("a", str(v), version=v) for v in (2, 1, 3, 3, 4)]
    outcomes = await asyncio.gather(*done)
    assert [o.fresh for o in outcomes] == [True, False, True, False, True]
    assert bench.told_of("a") == [1, 2, 3]


async def test_another_version_epoch_starts_again(bench):
    await bench.append("a", version=9, version_epoch="x")
    assert (await bench.append("a", version=1, version_epoch="y")).fresh
    assert not (await bench.append("a", version=1, version_epoch="y")).fresh


async def test_a_publication_without_version_changes_no_version(bench):
    await bench.append("a", version=9)
    assert (await bench.append("a")).fresh
    assert not (await bench.append("a", version=9)).fresh
    assert (await bench.append("a", version=10)).fresh


async def test_a_version_survives_a_restart(reopen):
    await (await reopen()).append("a", version=9, version_epoch="x")
    bench = await reopen()
    assert not (await bench.append("a", version=9, version_epoch="x")).fresh
    assert (await bench.append("a", version=10, version_epoch="x")).fresh


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


# What is kept


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
    bench.clock.advance(MONTH - 131.0)
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
    await bench.store.close()
    await bench.store.close()
    with pytest.raises(StoreUnavailable):
        await bench.append("a")
    with pytest.raises(StoreUnavailable):
        await bench.read("a")
    with pytest.raises(StoreUnavailable):
        await bench.store.remove("a")
    assert bench.store.fault() is not None


async def test_two_closes_at_once_end_together(bench):
    done = [bench.append("a") for _ in range(50)]
    await asyncio.gather(bench.store.close(), bench.store.close())
    assert all(future.done() for future in done)


async def test_a_store_that_was_not_started_refuses(tmp_path, clock):
    for factory in DURABLE.values():
        bench = Bench(factory(tmp_path, clock), clock)
        with pytest.raises(StoreUnavailable):
            await bench.append("a")
        assert bench.store.fault() is not None
        await bench.store.close()

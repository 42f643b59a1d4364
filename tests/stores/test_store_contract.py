"""Contract of the Store port, run on every implementation: appending."""

from __future__ import annotations

import asyncio

import pytest

from service.core.model import Appended, Draft, Position
from service.core.ports import History
from tests.stores.support import CHAT

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
    for channel in range(3):  # nobody promises an order of different channels
        told = [c.publication.data for c in bench.told if c.channel == f"c{channel}"]
        assert told == [str(n) for n in range(channel, 600, 3)]


async def test_many_channels_in_one_batch(bench):
    outcomes = await asyncio.gather(*[bench.append(f"c{n}") for n in range(40)])
    assert {o.position.offset for o in outcomes} == {1}
    outcomes = await asyncio.gather(*[bench.append(f"c{n}") for n in range(40)])
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


@pytest.mark.requirement("L4")
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
        for channel, publication, *_ in committed:
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


@pytest.mark.parametrize("history", [CHAT, NO_HISTORY], ids=["kept", "not kept"])
async def test_the_listener_is_told_what_may_be_sent_as_a_delta(bench, history):
    await bench.append("a", "1", history)
    await bench.append("a", "2", history, delta=True)
    assert [(c.publication.data, c.delta) for c in bench.told] == [
        ("1", False),
        ("2", True),
    ]


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
    ((channel, publication, epoch, *_),) = bench.told
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


@pytest.mark.requirement("B63")
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

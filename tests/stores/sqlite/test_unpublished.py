"""Channels without metadata: what is answered without a look at the file, and what not.

Interleavings: a channel of the slot is published to before, between and after reads,
in this process's time and before it; its metadata expires; the commit fails.
"""

from __future__ import annotations

import itertools
import random
import sqlite3

import pytest

from service.core.errors import StoreError, StoreUnavailable
from service.core.model import Channel, Position
from service.core.ports import History
from service.stores.sqlite import unpublished
from service.stores.sqlite.channel_state import slot_of
from tests.stores.support import CHAT, Bench, on_disk, shared, uncached

BRIEF = History(10, 5.0, meta_ttl=60.0)


def neighbour(channel: str) -> Channel:
    """Return another channel of the same slot."""
    names = (Channel(f"n{number}") for number in itertools.count())
    return next(name for name in names if slot_of(name) == slot_of(Channel(channel)))


@pytest.fixture
async def opened(tmp_path, clock):
    """Return a function that closes the store, if one is open, and opens it again."""
    benches: list[Bench] = []

    async def opened(factory=uncached):
        if benches:
            await benches[-1].store.close()
        benches.append(await Bench(factory(tmp_path, clock), clock).start())
        return benches[-1]

    yield opened
    await benches[-1].store.close()


async def top(bench: Bench, channel: str) -> Position:
    """Return a channel's top, as a client is told it that subscribes."""
    page = bench.store.peek(Channel(channel), CHAT, 0, 0)
    return page.top if page is not None else (await bench.read(channel, 0, 0)).top


async def test_a_channel_never_published_to_is_answered_without_a_read(opened):
    bench = await opened()
    page = bench.store.peek(Channel("a"), CHAT, 0, 0)
    assert page.publications == []
    assert (await bench.read("a", 7, -1)).top == page.top
    assert (await bench.read("a", reverse=True)).top == page.top
    assert bench.store.reads == 0
    again = await opened(shared)  # which reads the file
    assert await top(again, "a") == page.top
    assert again.store.reads == 1


async def test_its_first_publication_goes_on_in_the_epoch_that_was_answered(opened):
    bench = await opened()
    before = await top(bench, "a")
    first = (await bench.append("a")).position
    assert first == (1, before.epoch)
    assert bench.store.reads == 0
    assert await top(bench, "a") == first
    assert bench.store.reads == 1  # nothing is cached, and the slot is not blank


async def test_whoever_is_told_of_a_publication_finds_it(opened):
    bench = await opened()
    found = []
    bench.hook = lambda committed: found.append(
        bench.store.peek(committed[0].channel, CHAT, 0, 0)
    )
    await bench.append("a")
    assert [page is None or page.top.offset for page in found] == [True]


async def test_a_channel_of_the_same_slot_is_read(opened):
    bench = await opened()
    other = neighbour("a")
    blank = await top(bench, other)
    await bench.append("a")
    assert await top(bench, other) == blank
    assert bench.store.reads == 1


async def test_what_was_published_before_the_start_is_read(opened):
    bench = await opened()
    there = (await bench.append("a")).position
    absent = await top(bench, "b")
    bench = await opened()
    assert await top(bench, "a") == there
    assert bench.store.reads == 1
    assert await top(bench, "b") == absent
    assert bench.store.reads == 1


async def test_a_channel_whose_metadata_expired_is_read_and_has_another_epoch(opened):
    bench = await opened()
    other = neighbour("a")
    before = await top(bench, other)
    await bench.append("a", history=BRIEF)
    bench.clock.advance(61.0)
    await bench.sweep()
    reads = bench.store.reads
    after = [await top(bench, "a"), await top(bench, other)]
    assert bench.store.reads == reads + 2
    assert after[0] == after[1] != before
    bench = await opened()  # the slot is blank again, in its new epoch
    assert [await top(bench, "a"), await top(bench, other)] == after
    assert bench.store.reads == 0


async def test_a_channel_whose_first_commit_failed_is_read(opened, tmp_path):
    bench = await opened()
    before = await top(bench, "a")
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON publications"
        " BEGIN SELECT raise(ABORT, 'no'); END"
    )
    with pytest.raises(StoreError, match="cannot be stored"):
        await bench.append("a")
    other.execute("DROP TRIGGER refuse")
    other.close()
    assert await top(bench, "a") == before
    assert bench.store.reads == 1


async def test_a_shared_file_is_always_read(opened):
    bench = await opened(shared)
    await top(bench, "a")
    await top(bench, "a")
    assert bench.store.reads == 2


async def test_of_too_many_channels_nothing_is_known(opened, monkeypatch):
    monkeypatch.setattr(unpublished, "MOST", 3)
    for number in range(4):
        bench = await opened()
        await top(bench, "other")
        assert bench.store.reads == 0
        await bench.append(f"c{number}")
    bench = await opened()
    await top(bench, "other")
    assert bench.store.reads == 1


async def test_a_name_that_has_no_utf8_is_refused_as_by_a_read(opened):
    bench = await opened()
    assert bench.store.peek(Channel("\ud800"), CHAT, 0, 0) is None
    with pytest.raises(StoreUnavailable):
        await bench.read("\ud800", 0, 0)


@pytest.mark.parametrize("factory", [on_disk, uncached], ids=["cached", "uncached"])
async def test_every_answer_is_the_one_of_the_file(opened, factory, tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    bench = await opened(factory)
    names = [f"c{number}" for number in range(6)]
    names += [neighbour(name) for name in names[:4]]
    told: dict[str, Position] = {}
    for _ in range(120):
        name = rng.choice(names)
        step = rng.random()
        if step < 0.25:
            told[name] = (await bench.append(name, history=BRIEF)).position
        elif step < 0.3:
            bench.clock.advance(61.0)
            await bench.sweep()
            told.clear()
        elif step < 0.35:
            bench = await opened(factory)
        else:
            found = await top(bench, name)
            if name in told:
                assert found == told[name]
            reader = sqlite3.connect(tmp_path / "store.db")
            row = reader.execute(
                "SELECT top, epoch FROM channels WHERE name = ?", (name,)
            ).fetchone()
            epoch = reader.execute(
                "SELECT coalesce((SELECT epoch FROM generations WHERE slot = ?),"
                " generation) FROM meta",
                (slot_of(Channel(name)),),
            ).fetchone()[0]
            reader.close()
            assert found.epoch == (row[1] if row else epoch)
            assert bool(found.offset) == bool(row)

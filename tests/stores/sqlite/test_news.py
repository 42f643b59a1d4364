"""Several stores on one file: what each tells the others, and what none may miss."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import threading

import pytest
import structlog

from service.core.errors import StoreFull, StoreInUse
from service.core.model import Channel
from service.core.ports import NO_HISTORY, History
from service.settings import StoreSettings
from service.stores.sqlite import news
from service.stores.sqlite.channel_state import ChannelStateCache
from service.stores.sqlite.schema import open_files
from service.stores.sqlite.space import Space
from service.stores.sqlite.state import StateTable
from service.stores.sqlite.store import SqliteStore
from tests.clock import VirtualClock
from tests.stores.sqlite.support import stored, until
from tests.stores.support import CHAT, Bench, on_disk, shared

LONG = History(10_000, 3600.0)


class Process(Bench):
    """A store that hears of others; `told` has all commits, `heard` those of others."""

    def __init__(self, *args):
        super().__init__(*args)
        self.heard, self.moves = [], []

    async def start(self):
        await self.store.start(self.listen, Hearing(self))
        return self


class Hearing:
    def __init__(self, process):
        self.process = process

    def told(self, batch):
        self.process.told += batch
        self.process.heard += batch

    def moved(self, channel, top):
        self.process.moves.append((channel, top.offset))


@pytest.fixture
async def pair(tmp_path, clock):
    """Return two stores on one file, as in two processes."""
    benches = [await Process(shared(tmp_path, clock), clock).start() for _ in range(2)]
    yield benches
    for bench in benches:
        await bench.store.close()


async def heard(bench, channel, offsets):
    await until(lambda: bench.told_of(channel) == offsets)


class Stopped:
    """A store whose writer's thread is held up."""

    def __init__(self, bench, monkeypatch):
        self.go, self._at = threading.Event(), threading.Event()
        put = StateTable.put

        def hold(table, kind, *args):
            if kind == "hold":
                self._at.set()
                assert self.go.wait(10)
            put(table, kind, *args)

        monkeypatch.setattr(StateTable, "put", hold)
        self._held = asyncio.ensure_future(bench.store.state.put("hold", "", "", 1.0))

    async def __aenter__(self):
        await until(self._at.is_set)
        return self

    async def __aexit__(self, *error):
        self.go.set()
        await self._held


@pytest.fixture
def stopped(monkeypatch):
    return lambda bench: Stopped(bench, monkeypatch)


# --- publications


@pytest.mark.requirement("R12", "R43")
async def test_each_hears_of_all_in_order_and_once(pair):
    one, two = pair
    outcomes = []
    for number in range(40):
        bench = (one, two)[number % 2]
        outcomes.append(await bench.append("a", str(number)))
    assert [o.position.offset for o in outcomes] == list(range(1, 41))
    for bench in pair:
        await heard(bench, "a", list(range(1, 41)))
        data = [c.publication.data for c in bench.told]
        assert data == [str(n) for n in range(40)]
        assert {c.epoch for c in bench.told} == {outcomes[0].position.epoch}
        assert len(bench.heard) == 20  # the listener was told of the others


async def test_news_at_the_first_look_are_told(tmp_path, clock, monkeypatch):
    start, look = threading.Thread.start, news.News.look
    looked = threading.Event()

    async def publish():
        other = await Process(shared(tmp_path, clock), clock).start()
        await other.append("a", "1")
        await other.store.close()

    def begin(thread):  # as if this thread stood still before and after
        if thread.name == "store-writer":
            monkeypatch.setattr(threading.Thread, "start", start)
            other = threading.Thread(target=lambda: asyncio.run(publish()))
            other.start()
            other.join()
            monkeypatch.setattr(news.News, "look", watched)
            start(thread)
            looked.wait(10)
        else:
            start(thread)

    def watched(self):
        try:
            return look(self)
        finally:
            looked.set()

    monkeypatch.setattr(threading.Thread, "start", begin)
    bench = await Process(shared(tmp_path, clock), clock).start()
    await heard(bench, "a", [1])
    assert len(bench.heard) == 1
    assert (await bench.append("a", "2")).position.offset == 2
    await bench.store.close()


async def test_a_start_that_fails_at_the_first_look_leaves_the_file(
    tmp_path, clock, monkeypatch
):
    def fail(space):
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Space, "blanked", fail)
    with pytest.raises(sqlite3.OperationalError):
        await Process(shared(tmp_path, clock), clock).start()
    monkeypatch.undo()
    other = await Process(on_disk(tmp_path, clock), clock).start()  # alone
    await other.store.close()


async def test_many_at_once_stay_dense_and_in_order(pair, tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    channels = ["a", "b", "c"]
    done = []
    for number in range(600):
        channel = rng.choice(channels)
        done.append(rng.choice(pair).append(channel, str(number), LONG))
        if rng.random() < 0.2:
            await asyncio.sleep(0)
    await asyncio.gather(*done)
    with sqlite3.connect(tmp_path / "store.db") as connection:
        for channel in channels:
            offsets = stored(connection, channel)
            assert offsets == list(range(1, len(offsets) + 1))
            for bench in pair:
                await heard(bench, channel, offsets)
    connection.close()


async def test_what_others_committed_comes_before_our_next_commit(pair, stopped):
    one, two = pair
    async with stopped(one) as held:
        mine = one.append("a", "mine")
        for number in range(3):
            await two.append("a", str(number))
        held.go.set()
        assert (await mine).position.offset == 4
    assert one.told_of("a") == [1, 2, 3, 4]


async def test_a_rolled_back_transaction_takes_nothing_from_others(pair, monkeypatch):
    one, two = pair
    await one.append("a")
    await heard(two, "a", [1])
    commit = ChannelStateCache.commit
    failures = [sqlite3.OperationalError("disk I/O error")]

    def fail(channels):
        if failures:
            raise failures.pop()
        commit(channels)

    await two.append("a")
    monkeypatch.setattr(ChannelStateCache, "commit", fail)
    with pytest.raises(Exception, match="disk I/O error"):
        await one.append("a")
    await two.append("b")  # it gets the id that was not given
    assert (await one.append("b")).position.offset == 2
    for bench in pair:
        await heard(bench, "a", [1, 2])
        await heard(bench, "b", [1, 2])


async def test_publications_without_history_reach_all_once(pair):
    one, two = pair
    two.store.follow(Channel("a"), CHAT)
    await one.append("a", "1", NO_HISTORY, delta=True)
    await one.append("a", "2", NO_HISTORY, urgent=True, info="{}", tags='{"k":"v"}')
    await two.append("a", "3")
    await one.append("a", "4", NO_HISTORY)
    for bench in pair:
        await until(lambda bench=bench: len(bench.told) == 4)
        assert [c.publication.data for c in bench.told] == ["1", "2", "3", "4"]
        assert [(c.delta, c.urgent) for c in bench.told[:2]] == [
            (True, False),
            (False, True),
        ]
        assert bench.told[1].publication.info == "{}"
        assert bench.told[1].publication.tags == '{"k":"v"}'


async def test_flags_of_publications_with_history_reach_the_others(pair):
    one, two = pair
    await one.append("a", "1", delta=True)
    await one.append("a", "2", urgent=True)
    await one.append("a", "3")
    await heard(two, "a", [1, 2, 3])
    flags = [(c.delta, c.urgent) for c in two.told]
    assert flags == [(True, False), (False, True), (False, False)]


@pytest.mark.requirement("R8")
async def test_an_idempotency_key_holds_over_processes(pair):
    one, two = pair
    first, second = await asyncio.gather(
        one.append("a", idempotency_key="k"), two.append("a", idempotency_key="k")
    )
    assert {first.fresh, second.fresh} == {True, False}
    assert first.position == second.position
    first, second = await asyncio.gather(
        one.append("b", "1", NO_HISTORY, idempotency_key="k"),
        two.append("b", "1", NO_HISTORY, idempotency_key="k"),
    )
    assert {first.fresh, second.fresh} == {True, False}


async def test_versions_hold_over_processes(pair):
    one, two = pair
    assert (await one.append("a", version=3)).fresh
    assert not (await two.append("a", version=3)).fresh
    assert (await two.append("a", version=4)).fresh
    assert not (await one.append("a", version=4)).fresh


# --- reads


async def test_a_read_after_a_commit_of_another_process_finds_it(pair, stopped):
    one, two = pair
    await two.fill("a", 2)
    async with stopped(two):  # it hears of nothing
        await one.append("a", "3")
        page = await two.read("a")
        assert [p.offset for p in page.publications] == [1, 2, 3]
        # A client whose newest offset is from the other process is not of the future.
        peeked = two.store.peek(Channel("a"), CHAT, 3, 64)
        assert peeked is None
        assert (await two.read("a", 3, 64)).top.offset == 3


async def test_memory_answers_with_what_others_published(pair):
    one, two = pair
    two.store.follow(Channel("a"), CHAT)
    await one.fill("a", 5)
    await heard(two, "a", [1, 2, 3, 4, 5])
    page = two.store.peek(Channel("a"), CHAT, 2, 64)
    assert [p.offset for p in page.publications] == [3, 4, 5]
    assert two.store.reads == 0


async def test_a_read_that_sees_more_than_was_told_is_not_told_twice(pair, stopped):
    one, two = pair
    async with stopped(two):
        await one.fill("a", 3)
        assert (await two.read("a")).top.offset == 3
        assert two.told == []
    await heard(two, "a", [1, 2, 3])
    assert [p.offset for p in (await two.read("a")).publications] == [1, 2, 3]


# --- removal, erasure, expiry


async def test_memory_forgets_what_nobody_follows(pair):
    one, two = pair
    two.store.follow(Channel("a"), CHAT)
    await one.fill("a", 5)
    await heard(two, "a", [1, 2, 3, 4, 5])
    two.store.unfollow(Channel("a"))
    await one.append("a")
    await heard(two, "a", [1, 2, 3, 4, 5, 6])
    assert two.store.peek(Channel("a"), CHAT, 2, 64) is None
    assert (await two.read("a")).top.offset == 6


async def test_memory_keeps_no_more_than_the_history(pair):
    one, two = pair
    brief = History(10, 60.0)
    two.store.follow(Channel("a"), brief)
    for _ in range(100):
        await one.append("a", history=brief)
    await until(lambda: two.told_of("a")[-1:] == [100])
    assert two.store.peek(Channel("a"), History(100, 60.0), 0, 100) is None
    page = two.store.peek(Channel("a"), brief, 0, 100)
    assert [p.offset for p in page.publications] == list(range(91, 101))


async def test_a_removal_is_seen_by_the_others(pair):
    one, two = pair
    two.store.follow(Channel("a"), CHAT)
    await one.fill("a", 3)
    await heard(two, "a", [1, 2, 3])
    assert two.store.peek(Channel("a"), CHAT, 0, 64) is not None
    await one.store.remove(Channel("a"))
    assert (await two.read("a")).publications == []
    await until(lambda: two.store.peek(Channel("a"), CHAT, 0, 64) is None)
    assert two.moves == [("a", 3)]
    assert (await two.append("a")).position.offset == 4
    await heard(one, "a", [1, 2, 3, 4])


async def test_an_erasure_is_seen_by_the_others(pair):
    one, two = pair
    two.store.follow(Channel("a"), CHAT)
    await one.append("a", '"secret"', info="x")
    await heard(two, "a", [1])
    assert await one.store.erase("x") == 1
    assert [p.data for p in (await two.read("a")).publications] == ["null"]

    def remembers():
        page = two.store.peek(Channel("a"), CHAT, 0, 64)
        return page is not None and page.publications[0].data != "null"

    await until(lambda: not remembers())


async def test_a_channel_that_expired_begins_anew_for_all(tmp_path, clock):
    short = History(10, 1.0, 2.0)
    pair = [await Process(shared(tmp_path, clock), clock).start() for _ in range(2)]
    one, two = pair
    before = (await one.append("a", history=short)).position
    assert (await two.append("a", history=short)).position.offset == 2
    for bench in pair:
        await heard(bench, "a", [1, 2])
    clock.advance(10.0)
    for _ in range(2):
        await one.sweep()
    after = (await two.append("a", history=short)).position
    assert after.offset == 1
    assert after.epoch != before.epoch
    assert (await one.append("a", history=short)).position == (2, after.epoch)
    for bench in pair:
        await heard(bench, "a", [1, 2, 1, 2])
        await bench.store.close()


async def test_what_another_process_swept_is_swept_again(pair, clock, tmp_path):
    # The second store does not know that its channel is empty; still its next
    # publication is due in time.
    one, two = pair
    brief = History(10, 100.0, 86_400.0)
    await two.append("a", history=brief)
    clock.advance(101.0)
    await one.sweep()
    await two.append("a", history=brief)
    clock.advance(101.0)
    await one.sweep()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert stored(connection, "a") == []
    connection.close()


async def test_news_are_deleted_and_ids_never_given_again(pair, clock, tmp_path):
    one, two = pair
    await one.append("a", "1", NO_HISTORY)
    await until(lambda: two.told)
    clock.advance(news.KEPT)
    await one.sweep()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("SELECT count(*) FROM news").fetchone() == (0,)
    connection.close()
    await two.append("a", "2", NO_HISTORY)
    await until(lambda: len(one.told) == 2)
    assert [c.publication.data for c in one.told] == ["1", "2"]


# --- notices


async def test_a_notice_reaches_all_that_hear_its_topic(pair):
    looks = []
    for name, bench in zip(("one", "two"), pair, strict=True):
        bench.store.hear("t", lambda name=name: looks.append(name))
    pair[0].store.notify("t")
    assert looks == ["one"]
    await until(lambda: looks == ["one", "two"])
    pair[1].store.notify("other")
    pair[1].store.notify("t")
    await until(lambda: looks == ["one", "two", "two", "one"])


async def test_notices_that_wait_are_written_once(pair, stopped):
    one, two = pair
    looks = []
    two.store.hear("t", lambda: looks.append("two"))
    async with stopped(one):
        for _ in range(100):
            one.store.notify("t")
    await one.append("a")
    await heard(two, "a", [1])
    assert looks == ["two"]


# --- who was away


async def test_who_stood_still_is_told_how_far_channels_have_come(pair, clock, stopped):
    one, two = pair
    looks = []
    two.store.hear("t", lambda: looks.append("t"))
    await one.fill("a", 3)
    await heard(two, "a", [1, 2, 3])
    async with stopped(two):
        await one.store.remove(Channel("a"))
        for number in range(4):
            await one.append("a", str(number))
            await one.append("b", str(number))
        await one.append("c", "lost", NO_HISTORY)
        clock.advance(news.KEPT / 2 + 1)
    await until(lambda: two.told_of("b"))
    assert two.told_of("a") == [1, 2, 3, 7]
    assert two.told_of("b") == [4]
    assert two.told_of("c") == []
    assert looks == ["t"]  # some may be lost
    assert await two.offsets("a") == [4, 5, 6, 7]
    await one.append("a")
    await until(lambda: two.told_of("a")[-1] == 8)


async def test_who_only_commits_for_long_misses_nothing(tmp_path, monkeypatch, stopped):
    # A minute passes in which it never waits for work, but it looks at each commit.
    clock, passed = VirtualClock(), []
    real = clock.now
    monkeypatch.setattr(clock, "now", lambda: real() + len(passed) * news.KEPT / 4)
    settings = StoreSettings(path=str(tmp_path / "store.db"), shared_by="tests")
    bench = await Process(SqliteStore(settings, clock, batch=1), clock).start()
    commit = ChannelStateCache.commit

    def pass_time(channels):
        commit(channels)
        passed.append(1)
        if len(passed) == 3:
            other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
            other.execute(
                "INSERT INTO news SELECT max(id) + 1, 'passing', 'b', 0, '7', NULL,"
                " NULL, 0 FROM publications"
            )
            other.close()

    monkeypatch.setattr(ChannelStateCache, "commit", pass_time)
    async with stopped(bench) as held:
        done = [bench.append("a") for _ in range(4)]
        held.go.set()
        await asyncio.gather(*done)
    assert [c.publication.data for c in bench.heard] == ["7"]
    await bench.store.close()


async def test_a_long_backlog_is_told_in_parts(pair, monkeypatch, stopped):
    monkeypatch.setattr(news, "ROWS", 7)
    one, two = pair
    async with stopped(two):
        for number in range(30):
            history = NO_HISTORY if number % 3 else LONG
            await one.append("a", str(number), history)
    await until(lambda: len(two.told) == 30)
    assert [c.publication.data for c in two.told] == [str(n) for n in range(30)]


# --- limits


async def settled(future):
    [outcome] = await asyncio.gather(future, return_exceptions=True)
    return outcome


async def test_a_namespace_is_full_for_all(tmp_path, clock):
    settings = StoreSettings(path=str(tmp_path / "store.db"), shared_by="tests")
    stores = [SqliteStore(settings, clock, namespaces={"n": 1000}) for _ in range(2)]
    one, two = [await Process(store, clock).start() for store in stores]
    await one.append("n:a", json.dumps("x" * 1200))
    await heard(two, "n:a", [1])
    with pytest.raises(Exception, match="namespace 'n' is full"):
        await two.append("n:a")
    await one.store.remove(Channel("n:a"))
    async with asyncio.timeout(10):
        while isinstance(outcome := await settled(two.append("n:a")), StoreFull):
            pass
    assert outcome.position.offset == 2
    for bench in (one, two):
        await bench.store.close()


# --- who may open the file


async def test_a_store_of_another_name_or_none_is_refused(pair, tmp_path, clock):
    for settings in ({}, {"shared_by": "others"}):
        with pytest.raises(StoreInUse):
            await on_disk(tmp_path, clock, **settings).start(lambda committed: None)
    assert (await pair[0].append("a")).position.offset == 1


async def test_a_store_of_one_process_is_not_shared(tmp_path, clock):
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    with pytest.raises(StoreInUse, match="does not share it"):
        await shared(tmp_path, clock).start(lambda committed: None)
    await bench.store.close()
    again = await Bench(shared(tmp_path, clock), clock).start()
    assert (await again.append("a")).position.offset == 1
    await again.store.close()


async def test_another_machine_is_refused(pair, tmp_path, clock):
    lock = tmp_path / "store.db.lock"
    text = lock.read_text()
    lock.write_text("another\n" + text.partition("\n")[2])
    with pytest.raises(StoreInUse, match="another machine"):
        await shared(tmp_path, clock).start(lambda committed: None)
    lock.write_text(text)
    bench = await Bench(shared(tmp_path, clock), clock).start()
    await bench.store.close()


async def test_an_older_file_is_not_migrated_under_others(pair, tmp_path, clock):
    await pair[0].append("a")
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("PRAGMA user_version = 2")
    with pytest.raises(StoreInUse, match="older schema"):
        await shared(tmp_path, clock).start(lambda committed: None)
    connection.execute("PRAGMA user_version = 3")
    connection.close()


# --- a lock held by another


async def test_a_commit_waits_for_another_process_a_bounded_time(tmp_path):
    clock = VirtualClock()
    bench = await Bench(shared(tmp_path, clock, lock_timeout=0.05), clock).start()
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    await bench.append("a")
    other.execute("BEGIN IMMEDIATE")
    waiting = bench.append("a")
    await until(lambda: clock.pending and clock.pending[0] <= clock.now() + 1)
    other.execute("COMMIT")
    clock.advance(1.0)  # the batch is tried again
    assert (await waiting).position.offset == 2
    other.close()
    await bench.store.close()


async def test_the_log_file_is_emptied_by_the_last_to_close(pair, tmp_path):
    one, two = pair
    await one.fill("a", 50)
    await one.store.close()
    assert (await two.append("a")).position.offset == 51
    await two.store.close()
    assert not (tmp_path / "store.db-wal").exists()
    path = str(tmp_path / "store.db")
    files = open_files(StoreSettings(path=path), random.Random(1))
    assert stored(files.writer, "a") == list(range(1, 52))
    files.close()


async def test_a_failed_look_is_logged_and_repeated(pair, monkeypatch):
    one, two = pair
    monkeypatch.setattr("service.stores.sqlite.store.LOOK_AGAIN", 0.001)
    failures = [sqlite3.OperationalError("disk I/O error")]
    look = news.News.look

    def fail(follower):
        if failures:
            raise failures.pop()
        return look(follower)

    with structlog.testing.capture_logs() as logged:
        monkeypatch.setattr(news.News, "look", fail)
        await one.append("a")
        await heard(two, "a", [1])
    assert [line["event"] for line in logged] == ["the store was not looked at"]

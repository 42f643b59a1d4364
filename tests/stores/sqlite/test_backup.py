"""Copying the embedded store, and putting a copy in its place."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from service.core.errors import (
    StartupError,
    StoreCorrupt,
    StoreError,
    StoreInUse,
    StoreVersion,
)
from service.core.ports import NO_HISTORY, History
from service.settings import StoreSettings
from service.stores.sqlite.backup import backup, restore
from tests.clock import VirtualClock
from tests.stores.sqlite.publisher import HISTORY
from tests.stores.sqlite.support import publisher
from tests.stores.support import CHAT, Bench, on_disk

UNPUBLISHED = [f"nobody-{n}" for n in range(100)]


@pytest.fixture
def settings(tmp_path):
    return StoreSettings(path=str(tmp_path / "store.db"))


@pytest.fixture
def copy(tmp_path):
    """Return where backups go: a directory of its own."""
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "copy.db"


@contextlib.asynccontextmanager
async def opened(path, clock=None):
    """Open the store in *path*, a directory."""
    clock = clock or VirtualClock()
    bench = await Bench(on_disk(path, clock), clock).start()
    try:
        yield bench
    finally:
        await bench.store.close()


async def tops(bench, channels):
    return {channel: (await bench.read(channel, limit=0)).top for channel in channels}


def listing(path):
    return {p.name: p.read_bytes() for p in sorted(path.iterdir()) if p.is_file()}


def query(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


async def fields(bench, channel, history=CHAT):
    page = await bench.read(channel, history=history)
    return [(p.offset, p.data, p.info, p.tags, p.time) for p in page.publications]


# Restored contents


async def test_a_restored_store_has_what_the_snapshot_had(tmp_path, settings, copy):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
        await bench.append("b", '{"x":1}', info='{"user":"u"}', tags='{"k":"v"}')
        expected = {c: await fields(bench, c) for c in "ab"}
        before = await tops(bench, "ab")
    assert backup(settings, str(copy)) == (2, 6)
    async with opened(tmp_path) as bench:
        await bench.fill("a", 3)
        await bench.append("c")
    copied, replaced = restore(settings, str(copy))
    assert copied == (2, 6)
    async with opened(tmp_path) as bench:
        assert {c: await fields(bench, c) for c in "ab"} == expected
        after = await tops(bench, "ab")
        assert [after[c].offset for c in "ab"] == [before[c].offset for c in "ab"]
        for offset in (6, 7, 8):
            outcome = await bench.append("a")
            assert outcome.position == (offset, after["a"].epoch)
        assert (await bench.append("c")).position.offset == 1
    tops_there = dict(
        query(
            replaced,
            "SELECT name, max(offset) FROM publications"
            " JOIN channels ON channel_id = channels.id GROUP BY name",
        )
    )
    assert tops_there == {"a": 8, "b": 1, "c": 1}


async def test_every_channel_gets_an_epoch_that_it_did_not_have(
    tmp_path, settings, copy
):
    clock = VirtualClock()
    brief = History(10, 5.0, meta_ttl=60.0)
    async with opened(tmp_path, clock) as bench:
        for n in range(20):  # their slots get generations of their own
            await bench.append(f"expired-{n}", "1", brief)
        clock.advance(61.0)
        await bench.sweep()
        await bench.fill("a", 3)
    assert len(query(settings.path, "SELECT * FROM generations")) == 20
    backup(settings, str(copy))
    names = ["a", *UNPUBLISHED, *(f"expired-{n}" for n in range(20))]
    async with opened(tmp_path, clock) as bench:
        await bench.fill("late", 3)
        seen = [await tops(bench, [*names, "late"])]
    for _ in range(3):
        restore(settings, str(copy))
        async with opened(tmp_path, clock) as bench:
            seen.append(await tops(bench, [*names, "late"]))
    for channel in (*names, "late"):
        epochs = {each[channel].epoch for each in seen}
        assert len(epochs) == len(seen), channel
        assert all(len(epoch) == 8 for epoch in epochs)
    assert [each["a"].offset for each in seen] == [3] * 4
    assert [each["late"].offset for each in seen] == [3, 0, 0, 0]


async def test_an_epoch_that_chance_repeats_is_not_taken(tmp_path, settings, copy):
    class Stuck(random.Random):
        """Says first what was said before."""

        def __init__(self, *numbers):
            super().__init__(1)
            self.numbers = list(numbers)

        def getrandbits(self, k):
            return self.numbers.pop(0) if self.numbers else super().getrandbits(k)

    async with opened(tmp_path) as bench:
        await bench.append("a")
    ((epoch, generation),) = query(
        settings.path, "SELECT epoch, generation FROM channels, meta"
    )
    backup(settings, str(copy))
    rng = Stuck(int(epoch, 16), 7, int(generation, 16), 8)
    restore(settings, str(copy), rng)
    assert query(settings.path, "SELECT epoch, generation FROM channels, meta") == [
        ("00000007", "00000008")
    ]


async def test_idempotency_keys_are_as_true_as_the_publications(
    tmp_path, settings, copy
):
    clock = VirtualClock()
    brief = History(10, 5.0, meta_ttl=60.0)
    async with opened(tmp_path, clock) as bench:
        first = await bench.append("gone", "1", brief, idempotency_key="gone")
        clock.advance(61.0)
        await bench.sweep()
        await bench.append("a", idempotency_key="1")
        await bench.append("a", idempotency_key="2")
        await bench.append("a", history=NO_HISTORY, idempotency_key="passed")
    backup(settings, str(copy))
    async with opened(tmp_path, clock) as bench:
        await bench.append("a", idempotency_key="3")
    restore(settings, str(copy))
    async with opened(tmp_path, clock) as bench:
        epoch = (await bench.read("a")).top.epoch
        again = [await bench.append("a", idempotency_key=k) for k in ("1", "2")]
        assert again == [((1, epoch), False), ((2, epoch), False)]
        passed = await bench.append("a", idempotency_key="passed")
        assert passed == ((0, ""), False)
        # Its publication is not in the snapshot: it is published now.
        lost = await bench.append("a", idempotency_key="3")
        assert lost == ((3, epoch), True)
        # The run of offsets had ended before the backup, and with it the publication.
        gone = await bench.append("gone", idempotency_key="gone")
        assert gone == (first.position, False)
        assert gone.position.epoch != (await bench.read("gone")).top.epoch


async def test_what_was_deleted_is_not_in_the_copy(tmp_path, settings, copy):
    async with opened(tmp_path) as bench:
        await bench.append("a", '"a secret that was removed"')
        await bench.store.remove("a")
        await bench.append("a", '"what is kept"')
    backup(settings, str(copy))
    content = copy.read_bytes()
    assert b"what is kept" in content
    assert b"a secret that was removed" not in content


# The files


async def test_a_backup_leaves_nothing_but_itself(tmp_path, settings, copy):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
    os.chmod(settings.path, 0o640)
    before = listing(tmp_path)
    backup(settings, str(copy))
    assert listing(tmp_path) == before
    assert os.listdir(copy.parent) == ["copy.db"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert query(copy, "PRAGMA journal_mode") == [("delete",)]  # one file is all


@pytest.mark.parametrize("kind", ["file", "link to nowhere", "directory"])
async def test_a_backup_overwrites_nothing(tmp_path, settings, copy, kind):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
    if kind == "file":
        copy.write_text("precious")
    elif kind == "directory":
        copy.mkdir()
    else:
        copy.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"copy\.db exists"):
        backup(settings, str(copy))
    assert os.listdir(copy.parent) == ["copy.db"]
    assert kind != "file" or copy.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("links", [True, False])
async def test_a_file_that_appears_meanwhile_is_not_overwritten(
    tmp_path, settings, copy, monkeypatch, links
):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
    link = os.link if links else without_links

    def late(source, final):
        final.write_text("precious")
        link(source, final)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(StoreError, match="exists"):
        backup(settings, str(copy))
    assert copy.read_text() == "precious"
    assert os.listdir(copy.parent) == ["copy.db"]


def without_links(source, target, **options):
    raise PermissionError(1, "Operation not permitted")


async def test_a_backup_to_a_file_system_without_hard_links(
    tmp_path, settings, copy, monkeypatch
):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
    monkeypatch.setattr(os, "link", without_links)
    assert backup(settings, str(copy)) == (1, 5)
    assert query(copy, "SELECT count(*) FROM publications") == [(5,)]
    assert os.listdir(copy.parent) == ["copy.db"]


async def test_a_backup_that_fails_leaves_nothing(tmp_path, settings, copy):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
    miss_in_index(tmp_path / "store.db")  # found when the copy is checked, not before
    with pytest.raises(StoreCorrupt):
        backup(settings, str(copy))
    assert os.listdir(copy.parent) == []
    with pytest.raises(StoreError, match=r"missing/copy\.db: No such file"):
        backup(settings, str(tmp_path / "missing" / "copy.db"))


async def test_a_copy_is_synced_before_it_has_its_name(
    tmp_path, settings, copy, monkeypatch
):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
    order = []
    real_sync, real_link, real_replace = os.fsync, os.link, os.replace

    def sync(descriptor):
        order.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_sync(descriptor)

    def link(source, target, **options):
        order.append(("name", str(target)))
        real_link(source, target, **options)

    def replace(source, target):
        order.append(("name", str(target)))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", replace)
    backup(settings, str(copy))
    (first, scratch), *rest = order
    assert first == "sync" and scratch.endswith("/copy.db") and scratch != str(copy)
    assert rest == [("name", str(copy)), ("sync", str(copy.parent))]
    order.clear()
    restore(settings, str(copy))
    (first, scratch), *rest = order
    assert first == "sync" and scratch.endswith("/copy.db")
    names = [place for what, place in rest if what == "name"]
    assert names == [settings.path + ".replaced-1", settings.path]
    assert rest[-1] == ("sync", str(tmp_path))


async def test_what_is_replaced_is_kept_under_a_name_of_its_own(
    tmp_path, settings, copy
):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
    backup(settings, str(copy))
    os.chmod(settings.path, 0o644)
    original = Path(settings.path).read_bytes()
    names = [restore(settings, str(copy)).replaced for _ in range(3)]
    assert names == [f"{settings.path}.replaced-{n}" for n in (1, 2, 3)]
    assert Path(names[0]).read_bytes() == original
    # As readable as the store that the server could open, but not for everybody.
    assert stat.S_IMODE(os.stat(settings.path).st_mode) == 0o640
    os.unlink(settings.path)
    assert restore(settings, str(copy)).replaced is None
    assert sorted(os.listdir(tmp_path)) == [
        "backups",
        "store.db",
        "store.db.lock",
        *(f"store.db.replaced-{n}" for n in (1, 2, 3)),
    ]


async def test_the_log_of_a_missing_store_is_not_played_into_the_new_one(
    tmp_path, settings, copy
):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
        backup_of_live(tmp_path / "store.db", tmp_path / "killed.db")
    backup(settings, str(copy))
    os.unlink(settings.path)
    os.rename(tmp_path / "killed.db-wal", settings.path + "-wal")
    assert os.path.getsize(settings.path + "-wal")
    replaced = restore(settings, str(copy)).replaced
    assert os.path.exists(replaced + "-wal")
    async with opened(tmp_path) as bench:
        assert await bench.offsets("a") == [1, 2, 3, 4, 5]
        assert (await bench.append("a")).position.offset == 6


def backup_of_live(store, target):
    """Copy file by file, as a file system's snapshot does."""
    for suffix in ("", "-wal"):
        shutil.copy(f"{store}{suffix}", f"{target}{suffix}")


async def test_a_copy_with_its_log_is_restored_whole_and_not_changed(
    tmp_path, settings, copy
):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
        backup_of_live(tmp_path / "store.db", copy)
    before = listing(copy.parent)
    assert before["copy.db-wal"]
    restore(settings, str(copy))
    after = listing(copy.parent)
    after.pop("copy.db-shm", None)  # SQLite's index of the log
    assert after == before
    async with opened(tmp_path) as bench:
        assert await bench.offsets("a") == [1, 2, 3, 4, 5]


async def test_a_copy_made_by_other_means_is_not_changed(tmp_path, settings, copy):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
    shutil.copy(settings.path, copy)  # of a stopped server: in WAL mode, without a log
    before = listing(copy.parent)
    copy.chmod(0o400)
    restore(settings, str(copy))
    assert listing(copy.parent) == before
    async with opened(tmp_path) as bench:
        assert await bench.offsets("a") == [1, 2, 3, 4, 5]


# Refusals


def damage(path):
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:5000])


def scribble(path):
    path.write_bytes(b"not a database" * 100)


def strip_index(path):
    """Take the entries out of an index: offsets could be given twice."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        (sql,) = connection.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'publications_offset'"
        ).fetchone()
        connection.execute(
            "UPDATE sqlite_master SET sql = ? WHERE name = 'publications_offset'",
            (sql.replace("(channel_id, offset)", "(offset, channel_id)"),),
        )


def miss_in_index(path):
    """Store a publication that an index does not have."""
    index = "name = 'publications_offset'"

    def run(*statements):
        with contextlib.closing(
            sqlite3.connect(path, isolation_level=None)
        ) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            return [connection.execute(*each).fetchall() for each in statements]

    ((row,), _) = run(
        (f"SELECT * FROM sqlite_master WHERE {index}",),
        (f"DELETE FROM sqlite_master WHERE {index}",),
    )
    run(("INSERT INTO publications VALUES (99, 1, 99, 1, '1', NULL, NULL)",))
    run(("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", row))


def change(statement):
    def run(path):
        with contextlib.closing(
            sqlite3.connect(path, isolation_level=None)
        ) as connection:
            connection.execute(statement)

    return run


FAULTS = {
    "damaged": (damage, (StoreCorrupt, StoreError)),
    "cut off": (truncate, (StoreCorrupt, StoreError)),
    "no database": (scribble, (StoreCorrupt,)),
    "index": (strip_index, (StoreCorrupt, StoreError)),
    "newer": (change("PRAGMA user_version = 99"), (StoreVersion,)),
    "another's": (change("PRAGMA application_id = 7"), (StoreCorrupt,)),
    "incomplete": (change("DROP TABLE idempotency"), (StoreCorrupt,)),
    "empty": (lambda path: path.write_bytes(b""), (StoreError,)),
    "missing": (Path.unlink, (StoreError,)),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_bad_backup_is_refused_and_nothing_changes(
    tmp_path, settings, copy, fault
):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 50)
    backup(settings, str(copy))
    break_it, kinds = FAULTS[fault]
    break_it(copy)
    before = listing(tmp_path), listing(copy.parent)
    with pytest.raises(kinds) as caught:
        restore(settings, str(copy))
    assert "\n" not in str(caught.value)
    assert "copy.db" in str(caught.value)
    assert (listing(tmp_path), listing(copy.parent)) == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["backups"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_bad_store_is_not_backed_up_and_not_changed(
    tmp_path, settings, copy, fault
):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 50)
    break_it, kinds = FAULTS[fault]
    break_it(tmp_path / "store.db")
    before = listing(tmp_path)
    with pytest.raises(kinds) as caught:
        backup(settings, str(copy))
    assert "\n" not in str(caught.value)
    assert "store.db" in str(caught.value)
    assert listing(tmp_path) == before
    assert os.listdir(copy.parent) == []


@pytest.mark.parametrize("fault", ["damaged", "no database", "newer", "another's"])
async def test_a_bad_store_is_replaced_and_kept(tmp_path, settings, copy, fault):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 50)
    backup(settings, str(copy))
    FAULTS[fault][0](tmp_path / "store.db")
    bad = Path(settings.path).read_bytes()
    replaced = restore(settings, str(copy)).replaced
    assert Path(replaced).read_bytes() == bad
    async with opened(tmp_path) as bench:
        assert len(await bench.offsets("a")) == 50


async def test_a_store_in_use_is_not_replaced(tmp_path, settings, copy):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
    backup(settings, str(copy))
    server = await publisher(tmp_path)
    names = sorted(os.listdir(tmp_path))
    with pytest.raises(StoreInUse, match="stop the server first"):
        restore(settings, str(copy))
    assert sorted(os.listdir(tmp_path)) == names
    server.kill()
    await server.communicate()
    restore(settings, str(copy))
    async with opened(tmp_path) as bench:
        assert len(await bench.offsets("a")) == 5


def test_a_store_in_memory_is_neither_backed_up_nor_restored(copy):
    memory = StoreSettings(path=":memory:")
    with pytest.raises(StoreError, match="in memory"):
        backup(memory, str(copy))
    with pytest.raises(StoreError, match="in memory"):
        restore(memory, str(copy))


def test_a_place_that_cannot_be_written_is_named(tmp_path, copy):
    missing = StoreSettings(path=str(tmp_path / "missing" / "store.db"))
    with pytest.raises(StoreError, match="there is no store"):
        backup(missing, str(copy))
    with pytest.raises(StoreError, match=r"no store in .*copy\.db"):
        restore(missing, str(copy))


async def test_a_directory_that_is_missing_is_named(tmp_path, settings, copy):
    async with opened(tmp_path) as bench:
        await bench.fill("a", 5)
    backup(settings, str(copy))
    missing = StoreSettings(path=str(tmp_path / "missing" / "store.db"))
    with pytest.raises(StartupError, match="No such file or directory"):
        restore(missing, str(copy))


# Beside a process that writes


async def test_backups_beside_a_process_that_writes(tmp_path, settings, copy):
    writer = await publisher(tmp_path)
    acknowledged = {"c0": set(), "c1": set(), "c2": set()}

    def note(lines):
        for line in lines.decode().splitlines(keepends=True):
            if line.endswith("\n"):
                channel, offset, _ = line.split()
                acknowledged[channel].add(int(offset))

    stored = {}
    for number in range(5):
        for _ in range(300):
            note(await writer.stdout.readline())
        target = copy.with_name(f"copy-{number}.db")
        counts = backup(settings, str(target))
        stored = {}
        for channel, offset in query(
            target,
            "SELECT name, offset FROM publications JOIN channels"
            " ON channel_id = channels.id ORDER BY publications.id",
        ):
            stored.setdefault(channel, []).append(offset)
        assert counts == (len(stored), sum(map(len, stored.values())))
        for channel, known in acknowledged.items():
            assert known <= set(stored[channel])
            assert stored[channel] == list(range(1, len(stored[channel]) + 1))
    assert writer.returncode is None
    note(await writer.stdout.readline())  # it goes on
    writer.kill()
    rest, _ = await writer.communicate()
    note(rest)
    # A killed store with its log is backed up whole, too; nobody has to start it.
    assert os.path.getsize(settings.path + "-wal")
    backup(settings, str(copy))
    async with opened(tmp_path) as bench:
        for channel, known in acknowledged.items():
            offsets = await bench.offsets(channel, history=HISTORY)
            assert known <= set(offsets)
    assert query(copy, "SELECT count(*) FROM publications") >= [
        (sum(map(len, acknowledged.values())),)
    ]


# Killed half-way


class Killed(BaseException):
    """Stands for the end of the process."""


class Doom:
    """Ends the process before its n-th change of a directory."""

    def __init__(self, monkeypatch, countdown):
        self.countdown = countdown
        for name in ("link", "unlink", "replace"):
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, function):
        def run(*arguments, **options):
            # Not what removes the scratch directory: a kill would leave that.
            if "dir_fd" not in options:
                self.countdown -= 1
                if self.countdown < 0:
                    raise Killed
            return function(*arguments, **options)

        return run


def contents(path, tmp_path):
    """Return epoch and top of channel c0 in a store, read in a copy of it."""
    directory = tmp_path / "looked at"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for suffix in ("", "-wal"):
        if os.path.exists(f"{path}{suffix}"):
            shutil.copy(f"{path}{suffix}", directory / f"x{suffix}")
    return query(
        directory / "x",
        "SELECT epoch, (SELECT max(offset) FROM publications WHERE"
        " channel_id = channels.id) FROM channels WHERE name = 'c0'",
    )[0]


async def test_a_restore_killed_at_any_step_loses_nothing(
    tmp_path, settings, monkeypatch
):
    victim = tmp_path / "victim"
    victim.mkdir()
    async with opened(victim) as bench:
        await bench.fill("c0", 3)
    original = StoreSettings(path=str(victim / "store.db"))
    backup(original, str(tmp_path / "copy.db"))
    writer = await publisher(victim)
    for _ in range(300):
        await writer.stdout.readline()
    writer.kill()
    await writer.communicate()
    old = contents(victim / "store.db", tmp_path)
    assert old[1] > 50
    assert os.path.getsize(victim / "store.db-wal")
    for step in range(100):
        work = tmp_path / f"work-{step}"
        shutil.copytree(victim, work)
        here = StoreSettings(path=str(work / "store.db"))
        with monkeypatch.context() as patched:
            Doom(patched, step)
            with contextlib.suppress(Killed):
                restore(here, str(tmp_path / "copy.db"))
                break
        found = None
        if os.path.exists(here.path):
            found = contents(here.path, tmp_path)
            # The old one whole, or the new one, whose log is not the old one's.
            assert found == old or (found[1] == 3 and found[0] != old[0]), step
        replaced = work / "store.db.replaced-1"
        assert found == old or contents(replaced, tmp_path) == old, step
        # The user restores again.
        restore(here, str(tmp_path / "copy.db"))
        epoch, top = contents(here.path, tmp_path)
        assert top == 3 and epoch != old[0]
    assert step >= 5
    assert contents(work / "store.db.replaced-1", tmp_path) == old
    assert contents(work / "store.db", tmp_path)[1] == 3


async def test_a_restore_killed_at_any_step_leaves_a_server_that_misleads_nobody(
    tmp_path, monkeypatch
):
    """A start in the middle of it serves the old store whole, or other epochs."""
    victim = tmp_path / "victim"
    victim.mkdir()
    async with opened(victim) as bench:
        await bench.fill("c0", 3)
        backup_of_live(victim / "store.db", tmp_path / "killed.db")
    backup(StoreSettings(path=str(victim / "store.db")), str(tmp_path / "copy.db"))
    epoch, top = contents(tmp_path / "killed.db", tmp_path)
    for step in range(100):
        work = tmp_path / f"work-{step}"
        work.mkdir()
        backup_of_live(tmp_path / "killed.db", work / "store.db")
        here = StoreSettings(path=str(work / "store.db"))
        with monkeypatch.context() as patched:
            Doom(patched, step)
            with contextlib.suppress(Killed):
                restore(here, str(tmp_path / "copy.db"))
                break
        async with opened(work) as bench:
            first = await bench.append("c0")
            if first.position.epoch == epoch:
                assert first.position.offset == top + 1
            assert await bench.offsets("c0") == list(
                range(1, first.position.offset + 1)
            )
    assert step >= 5

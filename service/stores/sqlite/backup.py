"""Backup of the SQLite store to a file, and restore from such a copy. Blocks.

For the commands only, not for the process that serves: closing a file drops the locks
that SQLite holds on it for the whole process.

Invariants:

* A backup is one snapshot of a store that may be in use. It waits for nobody and
  nobody waits for it; it does not take the lock on the store.
* A file appears at its final path complete, checked and synced, or not at all, and
  never in place of another.
* A restored store has epochs that no client has seen, also for channels that were
  never published to: offsets are about to be given again, and no client may take the
  new publications for those that it has.
* Whatever ends a restore half-way, the path has the old store, none, or the new one;
  never a store beside another one's log, which SQLite would play into it.

Idempotency keys survive. A snapshot has a key if and only if it has the publication,
so a publisher that repeats it is told that publication's offset, in the channel's new
epoch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import quote

from service.core.errors import StoreCorrupt, StoreError, StoreInUse
from service.settings import StoreSettings
from service.stores.sqlite.schema import (
    MEMORY,
    create,
    examine,
    lock_store,
    migrate,
    new_epoch,
    reason,
)

__all__ = ["backup", "restore"]

_LOGS = ("-wal", "-journal")  # SQLite would play them into the file beside them


class Copied(NamedTuple):
    """Contents of a copy.

    Attributes:
        channels: Count.
        publications: Count.
    """

    channels: int
    publications: int


class Restored(NamedTuple):
    """Result of a restore.

    Attributes:
        copied: What the store holds now.
        replaced: The new path of the store that was there before, or None.
    """

    copied: Copied
    replaced: str | None


def backup(settings: StoreSettings, target: str) -> Copied:
    """Copy the store to the new file *target*.

    Raises:
        StoreError: It was not written.
        StoreCorrupt: The store is damaged.
        StoreVersion: A newer program wrote the store.
        StartupError: The store cannot be opened.
    """
    _check_kind(settings)
    path = settings.path
    if path == MEMORY:
        raise StoreError("a store in memory cannot be backed up")
    if os.path.lexists(target):
        raise StoreError(f"{target} exists; it was left as it is")
    with _explained(f"store {path} cannot be backed up to {target}"):
        if not examine(path, settings):
            raise StoreError(f"there is no store {path}")
        final = Path(target).absolute()
        with TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
            copy = Path(scratch, "copy.db")
            # Writable: a read-only connection creates an empty log and leaves it, and
            # an immutable one would not notice a server that starts.
            _copy(_uri(path, "mode=rw"), copy, settings)
            copied = _check(copy, path)
            _sync(copy)
            _place(copy, final)
            _sync(final.parent)
    return copied


def restore(
    settings: StoreSettings, source: str, rng: random.Random | None = None
) -> Restored:
    """Put a copy of *source* in the place of the store, and keep the old store.

    Args:
        settings: Of the store.
        source: A backup. It is not changed.
        rng: Makes epochs; the system's by default.

    Raises:
        StoreError: Nothing was restored, because *source* cannot be read, say, or a
            file cannot be written.
        StoreInUse: A process has the store open.
        StoreCorrupt: *source* is damaged, or another program's.
        StoreVersion: A newer program wrote *source*.
        StartupError: *source* or the lock cannot be opened.
    """
    _check_kind(settings)
    path = settings.path
    if path == MEMORY:
        raise StoreError("a store in memory cannot be restored")
    with _explained(f"store {path} cannot be restored from {source}"):
        if not examine(source, settings):
            raise StoreError(f"there is no store in {source}")
        # The kernel's name of the file: SQLite derives those of the logs from it.
        final = Path(os.path.realpath(path))
        with (
            _locked(path),
            TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch,
        ):
            copy = Path(scratch, "copy.db")
            _copy(_uri(source, "mode=ro"), copy, settings)
            _renew(copy, rng or random.SystemRandom())
            copied = _check(copy, source)
            _resemble(copy, final)
            _sync(copy)
            replaced = _set_aside(final)
            os.replace(copy, final)
            _sync(final.parent)
    return Restored(copied, replaced)


def _check_kind(settings: StoreSettings) -> None:
    if settings.backend != "sqlite":
        raise StoreError(
            f"store.backend is {settings.backend}, and this is for SQLite: use the "
            "backups of DynamoDB (docs/store.md)"
        )


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"{what}: {reason(error)}") from error
    except OSError as error:
        raise StoreError(f"{what}: {os.strerror(error.errno or 0)}") from error


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    try:
        lock = lock_store(path)
    except StoreInUse as error:
        raise StoreInUse(
            f"store {path} is in use by another process; stop the server first"
        ) from error
    try:
        yield
    finally:
        os.close(lock)


def _uri(path: str, options: str) -> str:
    if "ro" in options and not any(os.path.exists(path + log) for log in _LOGS):
        options += "&immutable=1"  # as in `examine`
    return f"file:{quote(str(Path(path).absolute()))}?{options}"


def _copy(uri: str, copy: Path, settings: StoreSettings) -> None:
    """Write a snapshot of a store into a new file, which needs no log."""
    create(str(copy))  # VACUUM takes an empty file
    # Not the backup API: in steps it starts again whenever somebody wrote, and in one
    # step it copies deleted data too.
    connection = sqlite3.connect(
        uri, uri=True, timeout=settings.lock_timeout, isolation_level=None
    )
    with contextlib.closing(connection):
        connection.execute("VACUUM INTO ?", (str(copy),))


def _check(copy: Path, source: str) -> Copied:
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise StoreCorrupt(
                f"store {source} is damaged and was left as it is: "
                + " ".join(found.split())
            )
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM channels),"
            " (SELECT count(*) FROM publications)"
        ).fetchone()
    return Copied(*counts)


def _renew(copy: Path, rng: random.Random) -> None:
    """Give every channel, published to or not, an epoch it did not have."""

    def fresh(*known: str) -> str:
        epoch = new_epoch(rng)
        while epoch in known:
            epoch = new_epoch(rng)
        return epoch

    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        execute = connection.execute
        migrate(connection, rng)
        connection.create_function("fresh", 1, fresh)
        execute("BEGIN IMMEDIATE")
        execute(
            "CREATE TEMP TABLE renewed"
            " (name TEXT PRIMARY KEY, old TEXT, new TEXT) WITHOUT ROWID"
        )
        execute("INSERT INTO renewed SELECT name, epoch, fresh(epoch) FROM channels")
        # A key of an epoch that had ended stays as it is: its publication is gone.
        execute(
            "UPDATE idempotency SET epoch = renewed.new FROM renewed"
            " WHERE renewed.name = channel AND renewed.old = idempotency.epoch"
        )
        execute(
            "UPDATE channels SET epoch = renewed.new FROM renewed"
            " WHERE renewed.name = channels.name"
        )
        known = execute(
            "SELECT generation FROM meta UNION SELECT epoch FROM generations"
        ).fetchall()
        execute(
            "UPDATE meta SET generation = ?",
            (fresh(*(epoch for (epoch,) in known)),),
        )
        execute("DELETE FROM generations")
        execute("COMMIT")


def _resemble(copy: Path, model: Path) -> None:
    """Let the server that could open *model* open *copy*."""
    with contextlib.suppress(FileNotFoundError):
        found = model.stat()
        copy.chmod(found.st_mode & 0o770 | 0o600)  # never for everybody
        with contextlib.suppress(PermissionError):  # only the superuser may give away
            os.chown(copy, found.st_uid, found.st_gid)


def _set_aside(final: Path) -> str | None:
    """Give a store and its log other names; return the store's if there was one."""
    logs = [log for log in _LOGS if os.path.lexists(f"{final}{log}")]
    names = [*logs, ""] if os.path.lexists(final) else logs
    aside = _free_name(final)
    for name in names:
        os.link(f"{final}{name}", aside + name, follow_symlinks=False)
    _sync(final.parent)
    if logs:
        # In this order: a store without its log lacks what was acknowledged last, and
        # would give those offsets again in the same epochs.
        final.unlink(missing_ok=True)
        _sync(final.parent)
        for log in logs:
            os.unlink(f"{final}{log}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{final}-shm")  # the index of a log that has gone
    _sync(final.parent)
    return aside if names else None


def _free_name(final: Path) -> str:
    for number in itertools.count(1):
        aside = f"{final}.replaced-{number}"
        if not any(os.path.lexists(aside + name) for name in ("", *_LOGS)):
            return aside
    raise AssertionError("the loop has no end")


def _place(copy: Path, final: Path) -> None:
    """Give *copy* the name *final*, unless something has it."""
    try:
        os.link(copy, final)  # a rename would replace what is there
    except FileExistsError:
        raise StoreError(f"{final} exists; it was left as it is") from None
    except OSError:  # a file system without hard links
        if os.path.lexists(final):
            raise StoreError(f"{final} exists; it was left as it is") from None
        os.rename(copy, final)


def _sync(path: Path) -> None:
    """Write a file, or the names in a directory, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The SQLite file: its lock, its schema and migrations, the checks before it is opened.

Invariants:

* One process at a time, or those of one service on one machine: an flock on
  ``<path>.lock`` is held while the store is open, exclusive or, with
  `StoreSettings.shared_by`, shared. The kernel drops it when the process dies, however
  it dies. Whoever has a shared lock has found its own service and machine named in that
  file (a process of another machine would not see the write-ahead log's index, which is
  memory).
* A store is created and migrated under the exclusive lock, which is then turned into a
  shared one. Between the two, any other process may come: so the names are read again.
* A file that is not a store's is never written to. It is examined through a read-only
  connection before a connection is opened that could change a byte.
* What is created here can be read by this user alone from the first moment.
* The schema is created and migrated in one transaction: a process killed in the
  middle leaves the file as it was, or complete.

The schema itself keeps offsets dense, whoever writes: ``(channel_id, offset)`` is
unique, and a trigger saves the top before a publication is deleted. A channel's top is
therefore the larger of ``channels.top`` and its newest publication, and appending
needs no second statement to keep it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import structlog

from service.core.errors import StartupError, StoreCorrupt, StoreInUse, StoreVersion
from service.settings import StoreSettings

__all__ = [
    "MEMORY",
    "Files",
    "create",
    "examine",
    "is_fault",
    "is_invalid_data",
    "is_locked",
    "lock_store",
    "migrate",
    "new_epoch",
    "open_files",
    "open_to_others",
    "reason",
    "snapshot",
    "truncate_log",
]

MEMORY = ":memory:"

APPLICATION_ID = 0x5354_4457  # "STDW": tells a store from any other SQLite file
VERSION = 4  # of the schema; the number of _MIGRATIONS

# A damaged page of a larger file is found when it is read; checking 64 MiB takes
# some 0.1 s, and a start-up must not take minutes.
CHECKED_SIZE = 64 * 1024 * 1024  # bytes

# Enough for every statement the log uses: its inserts alone have 44 sizes.
CACHED_STATEMENTS = 256

_log = structlog.get_logger(__name__)

_INCREMENTAL = 2  # of PRAGMA auto_vacuum
_HEADER = b"SQLite format 3\x00"
# The tables that each version added.
_TABLES = (
    {"meta", "generations", "channels", "publications", "idempotency"},
    {"state"},
    {"news"},
    {"nodes", "connections", "evictions", "presence", "notices", "answers"},
)
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

# All times are Unix milliseconds. `last_id` is the highest publication id deleted so
# far: ids are never given twice. `due` is when the sweep must look at a channel next.
# `serial` counts deletions; nothing reads it any more, and probes write it. The rows of
# `news` have ids of the same sequence as publications, and may have one's id.
_MIGRATIONS = (
    """
    CREATE TABLE meta (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        generation TEXT NOT NULL,
        serial INTEGER NOT NULL,
        last_id INTEGER NOT NULL
    );
    CREATE TABLE generations (
        slot INTEGER PRIMARY KEY,
        epoch TEXT NOT NULL
    );
    CREATE TABLE channels (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        epoch TEXT NOT NULL,
        top INTEGER NOT NULL,
        touched INTEGER NOT NULL,
        ttl INTEGER NOT NULL,
        meta_ttl INTEGER NOT NULL,
        due INTEGER NOT NULL,
        version INTEGER NOT NULL,
        version_epoch TEXT NOT NULL
    );
    CREATE INDEX channels_due ON channels (due);
    CREATE TABLE publications (
        id INTEGER PRIMARY KEY,
        channel_id INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        time INTEGER NOT NULL,
        data TEXT NOT NULL,
        info TEXT,
        tags TEXT
    );
    CREATE UNIQUE INDEX publications_offset ON publications (channel_id, offset);
    CREATE TABLE idempotency (
        id INTEGER PRIMARY KEY,
        channel TEXT NOT NULL,
        key TEXT NOT NULL,
        offset INTEGER NOT NULL,
        epoch TEXT NOT NULL,
        expires INTEGER NOT NULL
    );
    CREATE UNIQUE INDEX idempotency_key ON idempotency (channel, key);
    CREATE TRIGGER publications_deleted BEFORE DELETE ON publications BEGIN
        UPDATE channels SET top = OLD.offset, touched = OLD.time
            WHERE id = OLD.channel_id AND top < OLD.offset;
        UPDATE meta SET serial = serial + 1, last_id = max(last_id, OLD.id)
            WHERE id = 1;
    END;
    CREATE TRIGGER channels_deleted AFTER DELETE ON channels BEGIN
        UPDATE meta SET serial = serial + 1 WHERE id = 1;
    END;
    """,
    """
    CREATE TABLE state (
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        expires INTEGER NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
    CREATE INDEX state_expires ON state (expires);
    """,
    """
    CREATE TABLE news (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        channel TEXT NOT NULL,
        number INTEGER NOT NULL,
        data TEXT NOT NULL,
        info TEXT,
        tags TEXT,
        time INTEGER NOT NULL
    );
    CREATE TRIGGER news_deleted BEFORE DELETE ON news BEGIN
        UPDATE meta SET last_id = max(last_id, OLD.id) WHERE id = 1;
    END;
    """,
    """
    CREATE TABLE nodes (
        name TEXT PRIMARY KEY,
        until INTEGER NOT NULL,
        dead INTEGER NOT NULL,
        figures TEXT NOT NULL,
        feed TEXT NOT NULL
    );
    CREATE TABLE connections (
        client TEXT PRIMARY KEY,
        node TEXT NOT NULL,
        owner TEXT NOT NULL,
        active INTEGER NOT NULL,
        expires INTEGER NOT NULL
    );
    CREATE INDEX connections_node ON connections (node);
    CREATE INDEX connections_owner ON connections (owner);
    CREATE TABLE evictions (
        node TEXT NOT NULL,
        client TEXT PRIMARY KEY
    );
    CREATE TABLE presence (
        channel TEXT NOT NULL,
        client TEXT NOT NULL,
        user TEXT NOT NULL,
        node TEXT NOT NULL,
        info TEXT NOT NULL,
        joined INTEGER NOT NULL,
        lost INTEGER NOT NULL,
        present INTEGER NOT NULL,
        announced INTEGER NOT NULL,
        PRIMARY KEY (channel, client)
    );
    CREATE INDEX presence_node ON presence (node);
    CREATE TABLE notices (
        node TEXT NOT NULL,
        id TEXT NOT NULL,
        action TEXT NOT NULL,
        body TEXT NOT NULL,
        asker TEXT NOT NULL,
        expires INTEGER NOT NULL,
        PRIMARY KEY (node, id)
    );
    CREATE TABLE answers (
        id TEXT NOT NULL,
        node TEXT NOT NULL,
        part INTEGER NOT NULL,
        parts INTEGER NOT NULL,
        body TEXT NOT NULL,
        expires INTEGER NOT NULL,
        PRIMARY KEY (id, node, part)
    );
    """,
)


class Files:
    """An open store: the writer's connection, the reader's, and the lock.

    Attributes:
        writer: The connection that writes.
        reader: The one that reads; the same one for ``:memory:``.
    """

    def __init__(
        self,
        writer: sqlite3.Connection,
        reader: sqlite3.Connection,
        lock: int | None,
        settings: StoreSettings,
    ) -> None:
        self.writer = writer
        self.reader = reader
        self._lock = lock
        self._settings = settings
        self._identity = None if lock is None else _identity(settings.path)

    def reopen_writer(self) -> bool:
        """Replace the writer's connection by a new one to the same file.

        Returns:
            Whether it was: not for ``:memory:``, whose content is the connection's, nor
            when the path names another file now, or none.

        Raises:
            sqlite3.Error: It cannot be opened; the old connection stays.
        """
        path = self._settings.path
        if self._identity is None or self._identity != _identity(path):
            return False
        fresh = _connect(path, self._settings)
        old, self.writer = self.writer, fresh
        with contextlib.suppress(sqlite3.Error):
            old.close()
        return True

    def close(self) -> None:
        """Close both connections, checkpoint, and release the lock, whatever fails."""
        try:
            if self.reader is not self.writer:
                with contextlib.suppress(sqlite3.Error):
                    self.reader.close()
            # Others may write: SQLite empties the log when the last of them closes it.
            if not self._settings.shared_by:
                with contextlib.suppress(sqlite3.Error):
                    truncate_log(self.writer.execute)
            with contextlib.suppress(sqlite3.Error):
                self.writer.close()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Read from one state of the file until the block ends."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def truncate_log(execute: Callable[[str], sqlite3.Cursor]) -> bool:
    """Write the log into the file and empty it; False if somebody is reading it.

    Raises:
        sqlite3.Error: It failed.
    """
    [(busy, _, _)] = execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return not busy


def new_epoch(rng: random.Random) -> str:
    """Return a fresh name for a run of offsets: 8 hexadecimal characters."""
    return f"{rng.getrandbits(32):08x}"


def reason(error: BaseException | None) -> str:
    """Return an error in one line, with SQLite's own name for it."""
    name = getattr(error, "sqlite_errorname", None)
    return f"{error} ({name})" if name else str(error) or type(error).__name__


def is_invalid_data(error: BaseException) -> bool:
    """Return whether the data to be stored is at fault, not the database.

    Such data is text with half a surrogate pair, say, or an integer beyond 64 bits.
    """
    if not isinstance(error, sqlite3.Error):
        return True
    return isinstance(
        error,
        sqlite3.DataError
        | sqlite3.IntegrityError
        | sqlite3.InterfaceError
        | sqlite3.ProgrammingError,
    )


def is_fault(error: BaseException) -> bool:
    """Return whether the database failed: locked, full, an input/output error.

    Neither the data to be stored nor this program is to blame: the breaker counts it.
    """
    return not is_invalid_data(error) and hasattr(error, "sqlite_errorcode")


def is_locked(error: BaseException) -> bool:
    """Return whether another program has locked the database."""
    return isinstance(error, sqlite3.Error) and _code(error) in _LOCKED


def open_files(settings: StoreSettings, rng: random.Random) -> Files:
    """Open the store; create or migrate it first if need be. Blocks.

    Raises:
        StoreInUse: Another process has it open.
        StoreCorrupt: The file is damaged, or another program's; it was not changed.
        StoreVersion: A newer program wrote it; it was not changed.
        StartupError: It cannot be opened or created.
    """
    path = settings.path
    if path == MEMORY:
        connection = _connect(path, settings)
        migrate(connection, rng)
        return Files(connection, connection, None, settings)
    lock, alone = _lock(settings)
    opened: list[sqlite3.Connection] = []
    try:
        try:
            examine(path, settings)
            create(path)
            _warn_of_readers(path)
            opened.append(_connect(path, settings))
            if alone:
                migrate(opened[0], rng)
                _let_shrink(opened[0], path)
            elif _pragma(opened[0], "user_version") != VERSION:
                raise StoreInUse(
                    f"store {path} has an older schema, and is in use by processes of "
                    "an older program: stop them first"
                )
            opened.append(_connect(path, settings))
            if alone and settings.shared_by:
                _share(lock, settings)
        except sqlite3.Error as error:
            if _code(error) in _CORRUPT:
                raise StoreCorrupt(
                    f"store {path} is damaged and was left as it is: {reason(error)}"
                ) from error
            raise StartupError(
                f"store {path} cannot be opened: {reason(error)}"
            ) from error
    except BaseException:
        for connection in opened:
            connection.close()
        os.close(lock)
        raise
    return Files(opened[0], opened[1], lock, settings)


def _identity(path: str) -> tuple[int, int] | None:
    """Return device and number of a file, None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def create(path: str) -> None:
    """Create an empty file that only this user can read, unless the file exists.

    SQLite fills it, and gives its logs the same permissions. If SQLite created it, all
    users could read it, depending on the umask.

    Raises:
        StartupError: It cannot be created.
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise StartupError(
            f"store {path} cannot be opened: {os.strerror(error.errno or 0)}"
        ) from error


def open_to_others(path: str) -> list[str]:
    """Return those of a store's files that other users have permissions for."""
    found = []
    for name in ("", "-wal", "-shm", ".lock"):
        with contextlib.suppress(OSError):
            if os.stat(path + name).st_mode & 0o077:
                found.append(path + name)
    return found


def _warn_of_readers(path: str) -> None:
    names = open_to_others(path)
    if names:
        _log.warning(
            "other users have permissions for the store",
            files=names,
            remedy=f"chmod 600 {' '.join(names)}",
        )


def lock_store(path: str) -> int:
    """Lock a store for this process until the descriptor returned is closed.

    Raises:
        StoreInUse: Another process has it open.
        StartupError: The lock's file cannot be opened or locked.
    """
    descriptor = _open_lock(path)
    try:
        if not _flock(descriptor, fcntl.LOCK_EX, path):
            raise StoreInUse(
                f"store {path} is in use by another process. The embedded store serves "
                "one process unless store.shared_by is set: are several workers "
                "configured (hypercorn --workers)?"
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(settings: StoreSettings) -> tuple[int, bool]:
    """Lock a store; return the descriptor, and whether no other process has it open.

    Raises:
        StoreInUse: A process of another service or machine has it open, or one that
            does not share it, or one that is just opening it.
        StartupError: The lock's file cannot be opened or locked.
    """
    if not settings.shared_by:
        return lock_store(settings.path), True
    descriptor = _open_lock(settings.path)
    try:
        if _flock(descriptor, fcntl.LOCK_EX, settings.path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _sharers(settings), 0)
            return descriptor, True
        _share(descriptor, settings)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, False


def _share(descriptor: int, settings: StoreSettings) -> None:
    """Take the shared lock, or turn the exclusive one into it.

    Raises:
        StoreInUse: It is not for this service and machine.
    """
    path = settings.path
    if not _flock(descriptor, fcntl.LOCK_SH, path):
        raise StoreInUse(
            f"store {path} is in use by another process that does not share it"
        )
    if os.pread(descriptor, 1024, 0) != _sharers(settings):
        raise StoreInUse(
            f"store {path} is in use by processes of another service, whose "
            "store.shared_by differs, or of another machine"
        )


def _sharers(settings: StoreSettings) -> bytes:
    """Return the content of the lock's file: the machine, and who shares the store."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        machine = platform.node()
    return f"{machine}\n{settings.shared_by}\n".encode()


def _open_lock(path: str) -> int:
    try:
        return os.open(path + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartupError(
            f"store {path} cannot be opened: "
            f"{os.strerror(error.errno or 0)}: {path}.lock"
        ) from error


def _flock(descriptor: int, kind: int, path: str) -> bool:
    """Lock a descriptor without waiting; return whether that was possible."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StartupError(
            f"store {path} cannot be locked: {os.strerror(error.errno or 0)}"
        ) from error
    return True


def examine(path: str, settings: StoreSettings) -> bool:
    """Refuse a file that is not a store, without changing a byte of it.

    Returns:
        Whether a store is there; False for a file that is missing or empty.

    Raises:
        StoreCorrupt: It is damaged, or another program's.
        StoreVersion: A newer program wrote it.
        StartupError: It cannot be opened.
        sqlite3.Error: It cannot be read.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(len(_HEADER))
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StartupError(
            f"store {path} cannot be opened: {os.strerror(error.errno or 0)}"
        ) from error
    if not size:
        return False
    if header != _HEADER:
        raise StoreCorrupt(f"{path} is not a SQLite database; it was left as it is")
    # Without a log beside it, nobody has it open: `immutable` spares SQLite the files
    # by which it would find that out, and which a read-only connection leaves behind.
    alone = not (os.path.exists(path + "-wal") or os.path.exists(path + "-journal"))
    connection = sqlite3.connect(
        f"{_uri(path)}?mode=ro&immutable={int(alone)}",
        uri=True,
        timeout=settings.lock_timeout,
    )
    with contextlib.closing(connection):
        tables = _tables(connection)
        version = _pragma(connection, "user_version")
        application = _pragma(connection, "application_id")
        if not tables and not version and not application:
            return False  # a first start that was killed before it created anything
        if application != APPLICATION_ID:
            raise StoreCorrupt(f"{path} is another program's; it was left as it is")
        if version > VERSION:
            raise StoreVersion(
                f"store {path} has schema {version}, this program knows up to "
                f"{VERSION}: it was written by a newer one"
            )
        if not tables >= set().union(*_TABLES[: max(version, 1)]):
            raise StoreCorrupt(f"store {path} lacks tables; it was left as it is")
        if size <= CHECKED_SIZE:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise StoreCorrupt(
                    f"store {path} is damaged and was left as it is: "
                    + " ".join(found.split())  # the message is of several lines
                )
    return True


def _uri(path: str) -> str:
    return f"file:{quote(str(Path(path).absolute()))}"


def _connect(path: str, settings: StoreSettings) -> sqlite3.Connection:
    # By `mode=rw` a file that has gone is not made anew: see `create`.
    named = path if path == MEMORY else f"{_uri(path)}?mode=rw"
    connection = sqlite3.connect(
        named,
        uri=path != MEMORY,
        timeout=settings.lock_timeout,
        isolation_level=None,  # transactions are begun and ended by statements
        check_same_thread=False,  # opened by one thread, then used by one other
        cached_statements=CACHED_STATEMENTS,
    )
    synchronous = "FULL" if settings.durability == "power" else "NORMAL"
    # The order matters: the first statement that reads reports what is damaged. This
    # mode must be set before the file has a page, or before it is rewritten; where it
    # is set already, setting it would write, and so wait for a sync.
    if not _pragma(connection, "auto_vacuum"):
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    if path != MEMORY:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            connection.close()
            raise StartupError(
                f"store {path} cannot be used: its file system has no shared memory "
                "(write-ahead logging was refused)"
            )
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    # Deleted rows are overwritten with zeros (the default of some builds of SQLite).
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("PRAGMA journal_size_limit = 67108864")  # 64 MiB
    return connection


def migrate(connection: sqlite3.Connection, rng: random.Random) -> None:
    """Bring the schema to this program's version, in one transaction."""
    version = _pragma(connection, "user_version")
    if version == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for script in _MIGRATIONS[version:]:
            # Not executescript: it would commit what was begun.
            for statement in _statements(script):
                connection.execute(statement)
        if not version:
            connection.execute(
                "INSERT INTO meta VALUES (1, ?, 0, 0)", (new_epoch(rng),)
            )
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _let_shrink(connection: sqlite3.Connection, path: str) -> None:
    """Rewrite a file made by a version that could not give free pages back."""
    if _pragma(connection, "auto_vacuum") == _INCREMENTAL:
        return
    _log.info("the store's file is rewritten once, so that it can shrink", path=path)
    try:
        connection.execute("VACUUM")
    except sqlite3.Error as error:  # it serves as before, and the next start tries
        _log.warning("the store's file cannot shrink", reason=reason(error))


def _statements(script: str) -> list[str]:
    statements: list[str] = []
    pending = ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements


def _tables(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    return {name for (name,) in rows}


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, or 0 without one."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF

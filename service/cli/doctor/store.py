"""Examinations of the store: the SQLite file, or the DynamoDB table."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
from pathlib import Path

from service.cli.doctor.finding import NOTE, OK, PROBLEM, Finding
from service.core.clock import SystemClock
from service.core.errors import StartupError, SteadwireError, StoreInUse
from service.settings import DynamodbSettings, Settings, StoreSettings
from service.stores.sqlite.schema import open_files

__all__ = ["examine_store"]

_MAGIC = b"SQLite format 3\x00"
_HEADER = 108  # bytes of a database's header, and of its first page's


def examine_store(settings: Settings, *, running: bool = False) -> Finding:
    """Examine the store that the settings choose.

    Args:
        settings: They choose it.
        running: A server is running with these settings, so it holds the file.
    """
    if settings.store.backend == "dynamodb":
        return _dynamodb(settings.table)
    return _sqlite(settings.store, running=running)


def _sqlite(settings: StoreSettings, *, running: bool) -> Finding:
    path = settings.path
    if path == ":memory:":
        return Finding(
            NOTE,
            "store",
            "is in memory: it ends with the process",
            "set store.path to a file",
        )
    try:
        return Finding(OK, "store", _examine_file(path))
    except StoreInUse as error:
        if running:
            return Finding(OK, "store", f"{path} is in use by the running server")
        return Finding(PROBLEM, "store", *error.args)
    except SteadwireError as error:
        return Finding(PROBLEM, "store", *error.args)


def _examine_file(path: str) -> str:
    """Return the state of the database at *path*, which can be opened.

    Raises:
        StartupError: It cannot be opened; with the reason, and how to mend it.
    """
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise StartupError(
            f"{folder} is not a directory", "create it, or set store.path elsewhere"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StartupError(
            f"{folder} is not writable", "give this user the right to write there"
        )
    _try_lock(path + ".lock")
    try:
        with open(path, "rb") as file:
            header = file.read(_HEADER)
    except FileNotFoundError:
        return f"{path} will be created"
    except OSError as error:
        raise StartupError(
            f"{path} cannot be read: {error.strerror}", "set store.path to a file"
        ) from error
    if not header:
        return f"{path} is empty"
    if not os.access(path, os.W_OK):
        raise StartupError(
            f"{path} is not writable", "give this user the right to write it"
        )
    return _identify(path, header)


def _try_lock(path: str) -> None:
    # A lock file that does not exist is not created: no process holds it.
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartupError(
            f"{path} cannot be opened: {error.strerror}",
            "give this user the right to write it",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StoreInUse(
            f"{path.removesuffix('.lock')} is in use by another process",
            "if that is Steadwire, it runs already; else set store.path to another",
        ) from error
    finally:
        os.close(descriptor)  # this unlocks it


def _identify(path: str, header: bytes) -> str:
    """Return the state of the database with this header.

    The layout is in "Database File Format" of the SQLite project, 1.3 and 1.6. SQLite
    is not asked, because it would leave files beside the database.

    Raises:
        StartupError: It is not a store, or is one of a newer version.
    """
    elsewhere = "it was left as it is; set store.path to another file"
    if not header.startswith(_MAGIC) or len(header) < _HEADER:
        raise StartupError(f"{path} is not a SQLite database", elsewhere)
    found = int.from_bytes(header[60:64], "big")
    application = int.from_bytes(header[68:72], "big")
    expected, ours = _expected()
    # The first page is a leaf (13) without cells: no table.
    empty = header[100] == 13 and header[103:105] == b"\0\0"
    if empty and not (found or application):
        # A start that was killed made it; its changes, if any, are in the log.
        return f"{path} is a new database"
    if application != ours:
        raise StartupError(f"{path} is another program's", elsewhere)
    if found > expected:
        raise StartupError(
            f"{path} has schema {found}, this program knows up to {expected}",
            "a newer Steadwire wrote it: install that one",
        )
    return f"{path} can be opened"


def _expected() -> tuple[int, int]:
    """Return the schema version and the application id of a new store."""
    files = open_files(StoreSettings(path=":memory:"), random.Random())
    try:
        (schema,) = files.writer.execute("PRAGMA user_version").fetchone()
        (application,) = files.writer.execute("PRAGMA application_id").fetchone()
    finally:
        files.close()
    return schema, application


def _dynamodb(settings: DynamodbSettings) -> Finding:
    name = f"table {settings.table}"
    try:
        problems = asyncio.run(_compare(settings))
    except SteadwireError as error:
        return Finding(
            PROBLEM,
            "store",
            f"{name}: {' '.join(str(error).split())}",
            "see the section dynamodb of the settings, and boto3's credentials",
        )
    if problems:
        remedy = "`steadwire tables create` makes what is missing"
        return Finding(PROBLEM, "store", f"{name}: {'; '.join(problems)}", remedy)
    return Finding(OK, "store", name)


async def _compare(settings: DynamodbSettings) -> list[str]:
    from service.stores.dynamodb import table
    from service.stores.dynamodb.client import opened

    async with opened(settings, SystemClock()) as client:
        return await table.check(client, settings)

"""What ``steadwire doctor`` looks at before a start, without changing anything.

Each examination gives findings: what is as it should be, what is worth knowing, and
what would keep the service from starting or from doing its work, with how to mend it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import platform
import random
import socket
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import _speedups
from service.auth import KeysUnavailable, TokenInvalid, Verifier
from service.auth.jwks import Jwks, open_endpoints
from service.cli.doctor.api import api_keys
from service.cli.doctor.finding import NOTE, OK, PROBLEM, Finding
from service.cli.doctor.table import examine_table
from service.core.clock import SystemClock
from service.core.errors import SettingsError, StartupError, SteadwireError
from service.settings import Settings, StoreSettings, load
from service.stores.sqlite.schema import open_files

__all__ = ["PROBLEM", "Finding", "examine"]

_MAGIC = b"SQLite format 3\x00"
_HEADER = 108  # bytes of a database's header, and of its first page's


def examine(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything; without readable settings, at what needs none."""
    try:
        settings = load(environ, {})
    except SettingsError as error:
        yield Finding(
            PROBLEM,
            "settings",
            " ".join(str(error).split()),
            "correct it in the settings file or the environment (docs/running.md)",
        )
    else:
        yield Finding(OK, "settings", f"environment {settings.environment!r}")
        yield from _keys(settings)
        if settings.store.backend == "dynamodb":
            yield examine_table(settings.dynamodb)
        else:
            yield _store(settings.store)
        server, api = settings.server, settings.api
        yield _port(server.host, server.port, "server")
        if api.port is not None:
            yield _port(api.host or server.host, api.port, "api")
            if api.port == server.port != 0 and api.host in ("", server.host):
                yield Finding(
                    PROBLEM,
                    "port",
                    "api.port is server.port: it is no address of its own",
                    "set api.port to another, or leave it out",
                )
    yield _hypercorn()
    yield _fast()


# Keys.


def _keys(settings: Settings) -> Iterator[Finding]:
    yield _token_keys(settings)
    yield from api_keys(settings)
    for section in ("token", "subscription_token"):
        until = getattr(settings, section).hmac_previous_secret_key_valid_until
        if 0 < until <= time.time():
            yield Finding(
                NOTE,
                "keys",
                f"{section}.hmac_previous_secret_key is valid no more",
                "remove it and its date",
            )


def _token_keys(settings: Settings) -> Finding:
    if not (settings.token.has_keys or settings.subscription_keys.has_keys):
        try:
            settings.check_admission(hook=settings.proxy.connect != "")
        except SettingsError:
            level = PROBLEM
        else:
            level = NOTE
        return Finding(
            level,
            "keys",
            "no key is set: no token is valid"
            + (", and everybody is let in without" if settings.insecure else ""),
            "set token.hmac_secret_key; `steadwire keys` prints one",
        )
    try:
        return asyncio.run(_verifier(settings))
    except SettingsError as error:
        return Finding(
            PROBLEM,
            "keys",
            str(error),
            "correct that setting; a public key is given in PEM, all its lines",
        )


async def _verifier(settings: Settings) -> Finding:
    endpoints = open_endpoints(settings, SystemClock())
    try:
        Verifier(settings, time.time, endpoints)
        for url, jwks in endpoints.items():
            if not await _answers(jwks):
                return Finding(
                    PROBLEM,
                    "keys",
                    f"{url} gives no key set: tokens with a kid are refused for now",
                    "see that this machine reaches it, and that it answers with a "
                    "JWKS and status 200",
                )
            if url.startswith("http:") and settings.environment != "development":
                return Finding(
                    NOTE,
                    "keys",
                    f"{url} is not encrypted: who is on the way can make tokens",
                    "use https in jwks_public_endpoint",
                )
    finally:
        for jwks in endpoints.values():
            await jwks.close()
    return Finding(OK, "keys", "can be used")


async def _answers(jwks: Jwks) -> bool:
    try:
        await jwks.key("")  # the name of no key
    except TokenInvalid:
        return True
    except KeysUnavailable:
        return False
    raise AssertionError("a key without a name is never read")


# The store.


def _store(settings: StoreSettings) -> Finding:
    path = settings.path
    if path == ":memory:":
        return Finding(
            NOTE,
            "store",
            "is in memory: it ends with the process",
            "set store.path to a file",
        )
    try:
        return Finding(OK, "store", _look(path))
    except SteadwireError as error:
        return Finding(PROBLEM, "store", *error.args)


def _look(path: str) -> str:
    """Return what is at *path*, which could be opened.

    Raises:
        StartupError: It could not; with what is wrong, and how to mend it.
    """
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise StartupError(
            f"{folder} is no directory", "create it, or set store.path elsewhere"
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
    # Not created when it is not there: then nobody holds it.
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
        raise StartupError(
            f"{path.removesuffix('.lock')} is in use by another process",
            "if that is Steadwire, it runs already; else set store.path to another",
        ) from error
    finally:
        os.close(descriptor)  # and so unlocks it


def _identify(path: str, header: bytes) -> str:
    """Return what the header of a database says.

    Its layout: The SQLite Project, "Database File Format", 1.3 and 1.6. SQLite itself
    would leave files beside it.
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
        # A start that was killed; what it did, if anything, is in the log beside it.
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
    """Return the schema version and the application id of a store made now."""
    files = open_files(StoreSettings(path=":memory:"), random.Random())
    try:
        (schema,) = files.writer.execute("PRAGMA user_version").fetchone()
        (application,) = files.writer.execute("PRAGMA application_id").fetchone()
    finally:
        files.close()
    return schema, application


# The process.


def _port(host: str, port: int, section: str) -> Finding:
    where = f"{port} on {host}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        with contextlib.closing(socket.socket(family, kind, protocol)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return Finding(
                PROBLEM,
                "port",
                f"{where} is in use",
                f"if that is Steadwire, it runs already; else set {section}.port",
            )
        return Finding(
            PROBLEM,
            "port",
            f"{where} cannot be bound: {error.strerror}",
            f"set {section}.host to an address of this machine, and {section}.port to "
            "one that this user may bind (from 1024)",
        )
    return Finding(OK, "port", f"{where} is free")


def _hypercorn() -> Finding:
    try:
        from service.server import HYPERCORN_VERSIONS
    except ImportError as error:
        return Finding(
            PROBLEM,
            "hypercorn",
            f"cannot be used: {error}",
            "install Steadwire again, with its dependencies",
        )
    found = version("hypercorn")
    if found in HYPERCORN_VERSIONS:
        return Finding(OK, "hypercorn", found)
    supported = ", ".join(sorted(HYPERCORN_VERSIONS))
    return Finding(
        PROBLEM,
        "hypercorn",
        f"{found} is not supported, only {supported}",
        f"pip install hypercorn=={max(HYPERCORN_VERSIONS)}",
    )


def _fast() -> Finding:
    if _speedups.COMPILED:
        return Finding(OK, "speedups", "compiled")
    if _speedups.NO_SPEEDUPS:
        remedy = "unset SERVICE_NO_SPEEDUPS"
    elif platform.python_implementation() != "CPython":
        remedy = "they are for CPython only"
    else:
        remedy = (
            "get a C compiler, and install Steadwire again with "
            "SERVICE_BUILD_SPEEDUPS=yes (docs/speedups.md)"
        )
    return Finding(
        NOTE, "speedups", "not compiled: it is slower than it could be", remedy
    )

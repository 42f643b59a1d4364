"""Starts that must fail, as a user meets them; tests/cli has those of the command."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.harness.ports import free_port
from tests.harness.process import environment, launched
from tests.harness.server import Server

MakeServer = Callable[..., Server]


def run(directory: Path, *arguments: str, **settings: str) -> tuple[int, str, str]:
    """Run a module of Python to its end; return status, stdout and stderr."""
    ended = subprocess.run(
        launched(sys.executable, "-m", *arguments),
        cwd=directory,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """Return what the file of a store with publications holds."""
    directory = tmp_path_factory.mktemp("closed")
    server = Server(directory)
    try:
        server.start_blocking()

        async def fill() -> None:
            async with server.api() as api:
                for n in range(50):
                    await api.publish("a", {"n": n})
            assert await server.terminate() == 0

        asyncio.run(fill())
        yield (directory / "steadwire.db").read_bytes()
    finally:
        server.close()


@pytest.fixture
def store(closed: bytes, tmp_path: Path) -> Path:
    """Return the file of a store with publications."""
    path = tmp_path / "steadwire.db"
    path.write_bytes(closed)
    return path


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def make_newer(path: Path) -> None:
    _execute(path, "PRAGMA user_version = 99")


def make_anothers(path: Path) -> None:
    _execute(path, "PRAGMA application_id = 7")


def _execute(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)


FAULTS = [
    (damage, "is damaged and was left as it is"),
    (cut_off, "is damaged and was left as it is"),
    (make_newer, r"has schema 99, this program knows up to \d+: .* by a newer one"),
    (make_anothers, "is another program's; it was left as it is"),
]


@pytest.mark.parametrize(
    ("fault", "text"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS]
)
def test_a_store_that_is_not_ours_to_open(
    store: Path, fault: Callable[[Path], None], text: str
) -> None:
    fault(store)
    before = store.read_bytes()
    settings = {"STEADWIRE_STORE_PATH": str(store)}
    status, stdout, stderr = run(
        store.parent, "service", "serve", "--port=0", **settings
    )
    assert (status, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("steadwire: ")
    assert str(store) in line and re.search(text, line), line
    assert store.read_bytes() == before
    # Not even an empty log was left beside it.
    names = {path.name for path in store.parent.iterdir()}
    assert names == {store.name, f"{store.name}.lock"}


async def test_a_store_that_another_server_has(
    make_server: MakeServer, channel: str
) -> None:
    first = await make_server().start()
    path = first.settings["STEADWIRE_STORE_PATH"]
    async with first.api() as api:
        assert await api.publish(channel, 1) == 1
        status, stdout, stderr = await asyncio.to_thread(
            partial(run, STEADWIRE_STORE_OPEN_TIMEOUT="0.2"),
            *(Path(path).parent, "service", "serve", "--port=0", f"--store={path}"),
        )
        assert (status, stdout) == (2, "")
        *log, line = stderr.splitlines()
        assert f"store {path} is in use by another process" in line
        waiting = "waiting for the store: another process has it open"
        assert sum(waiting in each for each in log) == 1
        assert await api.publish(channel, 2) == 2
        first.kill9()
        # The lock is the kernel's: nothing is left of a killed process.
        await first.start()
        api.drop_connections()
        assert await api.publish(channel, 3) == 3


async def test_several_workers_of_hypercorn_are_refused(
    make_server: MakeServer, tmp_path: Path, channel: str
) -> None:
    """Each worker would answer from its own memory only."""
    port = free_port()
    server = make_server()
    path = server.settings["STEADWIRE_STORE_PATH"]
    _, _, stderr = await asyncio.to_thread(
        run,
        tmp_path,
        *("hypercorn", "--workers=2", f"--bind=127.0.0.1:{port}", "service.app:app"),
        STEADWIRE_STORE_PATH=path,
        STEADWIRE_API_KEY=server.key,
    )
    assert (
        f"store {path} is in use by another process. The embedded store serves one"
        " process unless store.shared_by is set: are several workers configured"
        " (hypercorn --workers)?"
    ) in stderr
    # All of it has ended: the port is free, and so is the store.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    await server.start()
    async with server.api() as api:
        assert await api.publish(channel, 1) == 1


def test_hypercorn_says_why_the_store_cannot_be_opened(store: Path) -> None:
    make_newer(store)
    before = store.read_bytes()
    settings = {"STEADWIRE_STORE_PATH": str(store)}
    arguments = ["hypercorn", "--bind=127.0.0.1:0", "service.app:app"]
    _, _, stderr = run(store.parent, *arguments, **settings)
    assert "has schema 99" in stderr
    assert store.read_bytes() == before

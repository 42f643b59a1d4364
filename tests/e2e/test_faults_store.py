"""The SQLite store below a real server: synced, swept on time, closed in time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import server as harness
from tests.harness.api import Api, ApiError
from tests.harness.process import launched
from tests.harness.server import Server
from tests.harness.tools import missing

MakeServer = Callable[..., Server]

# Becomes another program for which every fsync and fdatasync fails with EIO, by a
# seccomp filter (seccomp(2)): no tool, no privilege and no library in between. Its
# statements: not our architecture: allow; load the number; allow all but these two.
UNSYNCED = """
import ctypes, os, sys

arch, *syncs = [int(word) for word in sys.argv[1:4]]
filters = (
    (0x20, 0, 0, 4), (0x15, 1, 0, arch), (0x06, 0, 0, 0x7FFF0000),
    (0x20, 0, 0, 0), (0x15, 2, 0, syncs[0]), (0x15, 1, 0, syncs[1]),
    (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | 5),
)

class Filter(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("true", ctypes.c_ubyte),
                ("false", ctypes.c_ubyte), ("value", ctypes.c_uint)]

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.POINTER(Filter))]

program = Program(len(filters), (Filter * len(filters))(*filters))
prctl = ctypes.CDLL(None, use_errno=True).prctl
if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.byref(program), 0, 0):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execv(sys.argv[4], sys.argv[4:])
"""

# Of the kernel: AUDIT_ARCH_…, fsync, fdatasync.
NUMBERS = {"x86_64": (0xC000003E, 74, 75), "aarch64": (0xC00000B7, 82, 83)}


@contextlib.contextmanager
def unsynced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start servers so that no sync succeeds."""
    numbers = NUMBERS.get(platform.machine())
    if sys.platform != "linux" or numbers is None:
        pytest.skip("the numbers of this kernel's system calls are not known here")
    wrapper = [sys.executable, "-I", "-S", "-c", UNSYNCED, *map(str, numbers)]
    sync = "import os; os.fsync(os.open('.', os.O_RDONLY))"
    probe = [*wrapper, sys.executable, "-I", "-S", "-c", sync]
    ended = subprocess.run(probe, capture_output=True, text=True, check=False)
    if "Input/output error" not in ended.stderr:
        missing("seccomp", "the tests on a kernel with CONFIG_SECCOMP_FILTER")
    with monkeypatch.context() as patched:
        patched.setattr(
            harness, "launched", lambda *command: launched(*wrapper, *command)
        )
        yield


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_power_durability_acknowledges_nothing_that_is_not_synced(
    make_server: MakeServer,
    monkeypatch: pytest.MonkeyPatch,
    channel: str,
    durability: str,
) -> None:
    server = make_server({"STEADWIRE_STORE_DURABILITY": durability})
    await server.start()
    async with server.api() as api:
        for n in range(1, 6):
            assert await api.publish(channel, n) == n
        acknowledged = 5
        # Killed: its log is there, so that the next life begins without a sync.
        server.kill9()
        api.drop_connections()
        with unsynced(monkeypatch):
            await server.start()
        for n in range(6, 16):
            key = f"key {n}"
            if durability == "power":
                # One after the other, so each is a commit, and each wants its sync.
                with pytest.raises(ApiError) as refused:
                    await api.publish(channel, n, idempotency_key=key)
                assert refused.value.code == 100
                response = await api.request("GET", "/health/ready")
                # Three in a row open the breaker.
                assert response.status == (200 if n < 8 else 503)
                if n >= 8:
                    assert "SQLITE_IOERR_FSYNC" in response.json["reason"]
            else:
                assert await api.publish(channel, n, idempotency_key=key) == n
                acknowledged = n
        server.kill9()
        api.drop_connections()
        await server.start()
        # A publish that failed may have been stored; its key settles that.
        for n in range(6, 16):
            await api.publish(channel, n, idempotency_key=f"key {n}")
        stored = [(p["offset"], p["data"]) for p in await api.whole_history(channel)]
        assert [offset for offset, _ in stored] == list(range(1, 16))
        assert stored[:acknowledged] == [(n, n) for n in range(1, acknowledged + 1)]
        assert sorted(data for _, data in stored) == list(range(1, 16))


async def test_the_sweep_comes_on_time_again_and_again(
    make_server: MakeServer, channel: str
) -> None:
    options = {"history_size": 10, "history_ttl": 0.2, "history_meta_ttl": 3600}
    server = await make_server(
        {
            "STEADWIRE_STORE_SWEEP_INTERVAL": "0.1",
            "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(options),
        }
    ).start()
    path = server.settings["STEADWIRE_STORE_PATH"]
    with contextlib.closing(sqlite3.connect(path, timeout=10.0)) as look:

        def rows() -> int:
            (count,) = look.execute("SELECT count(*) FROM publications").fetchone()
            return int(count)

        async with server.api() as api:
            for n in range(1, 4):
                before = time.monotonic()
                assert await api.publish(channel, n) == n
                async with asyncio.timeout(5.0):
                    while rows():
                        await asyncio.sleep(0.01)  # between two looks
                # Not before it was due, and only by the sweep.
                assert time.monotonic() - before >= 0.2
            page = await api.history(channel, limit=10)
            assert (page["offset"], page["publications"]) == (3, [])


async def test_a_stop_does_not_wait_for_the_lock_once_for_each_batch(
    make_server: MakeServer,
) -> None:
    # 10,000 publications are 20 commits, each of which would wait for 0.5 s; the server
    # has 5 s for its whole end.
    settings = {
        "STEADWIRE_STORE_LOCK_TIMEOUT": "0.5",
        "STEADWIRE_SERVER_SHUTDOWN_TIMEOUT": "5",
    }
    server = await make_server(settings).start()
    path = server.settings["STEADWIRE_STORE_PATH"]
    channels = [f"c{n}" for n in range(10_000)]
    async with server.api() as api:
        assert await api.publish("c0", 1) == 1
        thief = sqlite3.connect(path, isolation_level=None, timeout=10.0)
        with contextlib.closing(thief):
            thief.execute("BEGIN IMMEDIATE")
            body = {"channels": channels, "data": 2}
            waiting = asyncio.create_task(api.post("broadcast", body, within=30.0))
            await until_failing(api)
            assert not waiting.done()
            assert await server.terminate(within=10.0) == 0
            # A publisher that waited was told what happened, or nothing.
            with contextlib.suppress(ConnectionError):
                responses = (await waiting).json["result"]["responses"]
                assert {each["error"]["code"] for each in responses} == {100}
        assert names(path) == [("c0",)]
        api.drop_connections()
        await server.start()
        assert await api.publish("c0", 3) == 2


async def until_failing(api: Api) -> None:
    async with asyncio.timeout(10.0):
        while (await api.request("GET", "/health/ready")).status == 200:
            await asyncio.sleep(0.05)  # between two looks


def names(path: str) -> list[tuple[str]]:
    """Return the channels in a store, looking into a file that is closed."""
    assert Path(path).exists()
    with contextlib.closing(sqlite3.connect(path)) as look:
        return look.execute("SELECT name FROM channels").fetchall()

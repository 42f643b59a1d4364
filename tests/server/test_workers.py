"""``steadwire serve --workers``: one port, several processes on one store."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.server import workers
from service.server.workers import supervise
from service.settings import Settings
from service.settings.sections import ServerSettings
from tests.harness.process import environment, launched
from tests.harness.raw import RawClient
from tests.harness.server import Server

WORKERS = {"STEADWIRE_SERVER_WORKERS": "2"}


def workers_of(server: Server) -> set[int]:
    return {child.pid for child in server.process.children()}


async def both(server: Server, channel: str) -> list[RawClient]:
    """Subscribe until each worker has a client; return all clients."""
    clients = []
    async with asyncio.timeout(60):
        while len(clients) < 2 or not all(map(has_client, workers_of(server))):
            clients.append((await server.join(channel))[0])
    return clients


def has_client(pid: int) -> bool:
    connections = psutil.Process(pid).net_connections("tcp")
    return any(one.status == psutil.CONN_ESTABLISHED for one in connections)


async def replaced(server: Server, gone: int) -> None:
    """Wait until another worker has the place of *gone*."""
    await server.logged(f'"pid": {gone}')
    async with asyncio.timeout(60):
        while gone in (found := workers_of(server)) or len(found) < 2:
            await asyncio.sleep(0.05)


async def ended(pids: set[int]) -> None:
    async with asyncio.timeout(30):
        while any(map(psutil.pid_exists, pids)):
            await asyncio.sleep(0.05)


@pytest.mark.timeout(240)
@pytest.mark.requirement("R12", "R49")
async def test_workers_are_one_server(make_server: Callable[..., Server]) -> None:
    server = await make_server(WORKERS).start()
    first = workers_of(server)
    assert len(first) == 2
    clients = await both(server, "ch")
    published = 0

    async def all_hear() -> None:
        nonlocal published
        published += 1
        # Each call may meet any worker.
        async with server.api() as api:
            assert await api.publish("ch", published) == published
        for client in clients:
            push = await client.push(within=20.0)
            assert push["pub"] == {"data": published, "offset": published}

    for _ in range(5):
        await all_hear()

    # One is killed, and started again on the same port and store.
    killed = min(first)
    os.kill(killed, signal.SIGKILL)
    await replaced(server, killed)
    # One is asked to end: it closes its clients and is replaced at once.
    asked = max(first)
    os.kill(asked, signal.SIGTERM)
    await replaced(server, asked)
    for client in clients:
        assert (await client.closed()).code in (None, 1006, 3001)
    assert not first & workers_of(server)
    clients = await both(server, "ch")
    await all_hear()

    pids = workers_of(server)
    assert await server.terminate() == 0
    assert not any(map(psutil.pid_exists, pids))
    for client in clients:
        assert (await client.closed()).code == 3001


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_workers_end_when_their_parent_was_killed(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server(WORKERS).start()
    pids = workers_of(server)
    server.process.kill()
    await ended(pids)


def run(directory: Path, *options: str) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "service", "serve", "--port=0", *options)
    return subprocess.Popen(
        launched(*command),
        cwd=directory,
        env=environment({"STEADWIRE_STORE_OPEN_TIMEOUT": "0"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_workers_that_cannot_start_are_reported_once(tmp_path: Path) -> None:
    process = run(tmp_path, "--workers=3", f"--store={tmp_path}/none/steadwire.db")
    out, error = await asyncio.to_thread(process.communicate)
    assert (process.returncode, out) == (2, b"")
    said = [line for line in error.decode().splitlines() if "cannot be opened" in line]
    assert len(said) == 1


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_signal_before_the_workers_are_ready(tmp_path: Path) -> None:
    process = run(tmp_path, "--workers=2")
    parent = psutil.Process(process.pid)
    async with asyncio.timeout(60):
        while not parent.children():
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, error = await asyncio.to_thread(process.communicate)
    assert (process.returncode, out) == (0, b""), error


async def test_workers_cannot_share_a_store_in_memory(tmp_path: Path) -> None:
    process = run(tmp_path, "--workers=2", "--store=:memory:")
    _, error = await asyncio.to_thread(process.communicate)
    assert process.returncode == 2
    assert b"a store in memory is one process's" in error


# The least that is a worker: it says that it serves, and waits for the signals that its
# parent passes on, each once.
WORKER = """
import os, signal, sys
left = {signal.SIGTERM, signal.SIGUSR1}
signal.pthread_sigmask(signal.SIG_BLOCK, left)
os.write(int(sys.argv[1].split(",")[1]), b"r")
while left:
    left.remove(signal.sigwait({signal.SIGTERM, signal.SIGUSR1}))
"""


class Forks:
    """Makes the processes of a parent; those of *fails* fail, as the first is 0."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *fails: int) -> None:
        self.made: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
        self._fails = fails
        self._count = 0
        self._make = asyncio.create_subprocess_exec
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self)

    async def __call__(self, *words: str, **options: Any) -> asyncio.subprocess.Process:
        number, self._count = self._count, self._count + 1
        if number in self._fails:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        process = await self._make(*words, **options)
        self.made.put_nowait(process)
        return process


@pytest.fixture
def handled() -> Iterator[None]:
    """Keep what signals do."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def supervised(ready: Callable[[list[str]], None], count: int = 2) -> int:
    settings = Settings(server=ServerSettings(port=0, workers=count))
    command = (sys.executable, "-S", "-c", WORKER)
    return await supervise(
        settings, lambda text: [*command, text], os.environ, ready=ready
    )


@pytest.mark.usefixtures("handled")
async def test_a_worker_that_could_not_be_forked_is_started_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "FIRST_PAUSE", 0.01)
    forks = Forks(monkeypatch, 2, 3)  # the first two tries to replace a worker
    ready = asyncio.Event()
    task = asyncio.create_task(supervised(lambda addresses: ready.set()))
    await ready.wait()
    killed, _ = await forks.made.get(), await forks.made.get()
    killed.kill()
    another = asyncio.ensure_future(forks.made.get())
    await asyncio.wait([another, task], return_when=asyncio.FIRST_COMPLETED)
    assert another.done() and another.result().returncode is None
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    assert await task == 0


@pytest.mark.usefixtures("handled")
async def test_a_worker_that_cannot_be_forked_at_the_start_ends_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Forks(monkeypatch, 0)
    assert await supervised(lambda addresses: None, 1) == 1

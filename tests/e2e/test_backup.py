"""The commands backup and restore, around a server with real clients."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.process import environment, launched
from tests.harness.sdk import SdkClient
from tests.harness.server import Server

MakeClient = Callable[..., Any]

# test_sdk_recovery has how older SDKs take `recovered: false`.
newest = pytest.mark.parametrize(
    "make_client", ["js-5.8.0", "python-0.7.0"], indirect=True
)


def run(
    server: Server, *arguments: str, before: Sequence[str] = ()
) -> tuple[int, str, str]:
    """Run a command on the server's store; return status, stdout and stderr."""
    path = server.settings["STEADWIRE_STORE_PATH"]
    ended = subprocess.run(
        launched(*before, sys.executable, "-m", "service", *arguments),
        cwd=Path(path).parent,
        env=environment({"STEADWIRE_STORE_PATH": path}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return ended.returncode, ended.stdout, ended.stderr


def refusal(result: tuple[int, str, str]) -> str:
    """Return the one line of a command that refused."""
    status, stdout, stderr = result
    assert (status, stdout) == (2, ""), result
    (line,) = stderr.splitlines()
    assert line.startswith("steadwire: ")
    return line.removeprefix("steadwire: ")


class Publishing:
    """Publishes numbers to one channel, each under its own key.

    Attributes:
        count: Acknowledged so far: numbers 1 to this, at the offsets of that number.
    """

    def __init__(self, api: Api, channel: str) -> None:
        self._api = api
        self._channel = channel
        self.count = 0

    async def up_to(self, count: int) -> None:
        while self.count < count:
            n = self.count + 1
            assert await self.one(n) == n
            self.count = n

    async def one(self, n: int) -> int:
        data = {"n": n, "text": "x" * 500}
        return await self._api.publish(self._channel, data, idempotency_key=f"{n}")

    @contextlib.asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Publish meanwhile."""
        stopping = False

        async def forever() -> None:
            while not stopping:
                await self.up_to(self.count + 1)
                await asyncio.sleep(0.001)  # the pace, not a wait for something

        task = asyncio.create_task(forever())
        try:
            yield
        finally:
            stopping = True
            await task


def handed_out(client: SdkClient, channel: str) -> dict[str, list[int]]:
    """Return the offsets that a client was handed, by epoch, in order of arrival."""
    epoch = ""
    offsets: dict[str, list[int]] = defaultdict(list)
    for event in client.log:
        if event.get("channel") != channel:
            continue
        if event["event"] == "subscribed":
            epoch = event["epoch"]
        elif event["event"] == "publication":
            offsets[epoch].append(event["offset"])
    return offsets


def subscriptions(client: SdkClient, channel: str) -> list[dict[str, Any]]:
    return [each for each in client.events["subscribed"] if each["channel"] == channel]


@newest
async def test_clients_are_told_of_a_restore(
    own_server: Server, make_client: MakeClient, tmp_path: Path
) -> None:
    busy, late, quiet = channels = ("busy", "late", "quiet")
    stays, away = await make_client(own_server.url), await make_client(own_server.url)
    for client in (stays, away):
        await client.connect()
        for channel in channels:
            await client.subscribe(channel)
    file = str(tmp_path / "copy.db")
    async with own_server.api() as api:
        publishing = Publishing(api, busy)
        await publishing.up_to(100)
        async with publishing.going_on():
            status, stdout, stderr = await asyncio.to_thread(
                run, own_server, "backup", file
            )
        assert (status, stderr) == (0, "")
        found = re.fullmatch(r"(.*): 1 channels, (\d+) publications\n", stdout)
        assert found and found[1] == file, stdout
        top = int(found[2])
        # Publishing went on meanwhile, and the copy is of one moment in between.
        assert 100 <= top < publishing.count
        # All this will be lost, and clients have seen it.
        last = max(publishing.count, top) + 50
        await publishing.up_to(last)
        for n in range(1, 4):
            assert await api.publish(late, {"lost": n}) == n
        for client in (stays, away):
            await client.seen("publication", last + 3)
        await away.disconnect()
        before = {c: subscriptions(stays, c)[-1]["epoch"] for c in channels}

        in_use = refusal(await asyncio.to_thread(run, own_server, "restore", file))
        assert in_use.endswith("is in use by another process; stop the server first")
        await publishing.up_to(last := last + 1)
        await stays.seen("publication", last + 3)
        own_server.kill9()
        status, stdout, stderr = await asyncio.to_thread(
            run, own_server, "restore", file
        )
        assert (status, stderr) == (0, "")
        path = own_server.settings["STEADWIRE_STORE_PATH"]
        assert stdout.splitlines() == [
            f"{path}: 1 channels, {top} publications",
            f"{path}.replaced-1: the store that was there before",
        ]
        await own_server.start()
        api.drop_connections()

        # It came back at once, and the store is behind its position.
        await stays.seen("subscribed", 6)
        for channel, offset in ((busy, top), (late, 0), (quiet, 0)):
            _, again = subscriptions(stays, channel)
            assert (again["was_recovering"], again["recovered"]) == (True, False)
            assert (again["offset"], again["epoch"] != before[channel]) == (
                offset,
                True,
            )
        stored = await api.whole_history(busy)
        assert [(each["offset"], each["data"]["n"]) for each in stored] == [
            (n, n) for n in range(1, top + 1)
        ]

        # A publisher repeats all it is not sure of: what is there keeps its offset,
        # what was lost gets the next ones, and more than had been there before.
        assert await publishing.one(top) == top
        for n in range(top + 1, last + 11):
            assert await publishing.one(n) == n
        for n in range(1, 6):
            assert await api.publish(late, {"new": n}) == n
            assert await api.publish(quiet, {"new": n}) == n

        # It comes back when its old position would be valid again.
        await away.connect()
        await away.seen("subscribed", 6)
        for channel, offset in ((busy, last + 10), (late, 5), (quiet, 5)):
            _, again = subscriptions(away, channel)
            assert (again["was_recovering"], again["recovered"]) == (True, False)
            assert (again["offset"], again["epoch"] != before[channel]) == (
                offset,
                True,
            )
        for channel in channels:
            await api.publish(channel, {"end": True})
        for client in (stays, away):
            await client.until(
                lambda client=client: (  # type: ignore[misc]
                    sum("end" in each["data"] for each in client.events["publication"])
                    == 3
                ),
                "the end of each channel",
            )

    new = {c: subscriptions(stays, c)[-1]["epoch"] for c in channels}
    assert new == {c: subscriptions(away, c)[-1]["epoch"] for c in channels}
    assert handed_out(stays, busy) == {
        before[busy]: list(range(1, last + 1)),
        new[busy]: list(range(top + 1, last + 12)),
    }
    assert handed_out(stays, late) == {
        before[late]: [1, 2, 3],
        new[late]: [1, 2, 3, 4, 5, 6],
    }
    assert handed_out(stays, quiet) == {new[quiet]: [1, 2, 3, 4, 5, 6]}
    assert handed_out(away, busy) == {
        before[busy]: list(range(1, last)),
        new[busy]: [last + 11],
    }
    assert handed_out(away, late) == {before[late]: [1, 2, 3], new[late]: [6]}
    assert handed_out(away, quiet) == {new[quiet]: [6]}
    assert stays.events["disconnected"] == []


@pytest.mark.parametrize("make_client", ["js-5.8.0"], indirect=True)
async def test_a_restored_server_recovers_as_ever(
    own_server: Server, make_client: MakeClient, tmp_path: Path
) -> None:
    file = str(tmp_path / "copy.db")
    async with own_server.api() as api:
        publishing = Publishing(api, "a")
        await publishing.up_to(5)
        assert run(own_server, "backup", file)[0] == 0
        assert await own_server.terminate() == 0
        assert run(own_server, "restore", file)[0] == 0
        await own_server.start()
        api.drop_connections()
        client = await make_client(own_server.url)
        await client.connect()
        await client.subscribe("a")
        await publishing.up_to(8)
        await client.seen("publication", 3)
        own_server.kill9()
        await own_server.start()
        api.drop_connections()
        await publishing.up_to(10)
        await client.seen("publication", 5)
    assert client.offsets("a") == [6, 7, 8, 9, 10]
    (_, again) = client.events["subscribed"]
    assert again["was_recovering"] and again["recovered"]


async def test_refusals_are_one_line_and_leave_everything(
    own_server: Server, tmp_path: Path
) -> None:
    path = own_server.settings["STEADWIRE_STORE_PATH"]
    async with own_server.api() as api:
        await Publishing(api, "a").up_to(200)
    file = tmp_path / "copy.db"
    file.write_text("precious")
    assert refusal(run(own_server, "backup", str(file))) == (
        f"{file} exists; it was left as it is"
    )
    assert refusal(
        run(own_server, "backup", str(tmp_path / "no" / "copy.db"))
    ).endswith(": No such file or directory")
    assert await own_server.terminate() == 0
    before = Path(path).read_bytes()
    assert refusal(run(own_server, "restore", str(file))) == (
        f"{file} is not a SQLite database; it was left as it is"
    )
    assert file.read_text() == "precious"
    assert Path(path).read_bytes() == before
    assert sorted(each.name for each in Path(path).parent.iterdir()) == [
        "steadwire.db",
        "steadwire.db.lock",
    ]


@pytest.mark.parametrize("command", ["backup", "restore"])
async def test_a_disk_without_room_for_the_copy(
    own_server: Server, tmp_path: Path, command: str
) -> None:
    path = Path(own_server.settings["STEADWIRE_STORE_PATH"])
    async with own_server.api() as api:
        await Publishing(api, "a").up_to(200)
    directory = tmp_path / "backups"
    directory.mkdir()
    file = directory / "copy.db"
    assert run(own_server, "backup", str(file))[0] == 0
    assert file.stat().st_size > 100_000
    assert await own_server.terminate() == 0
    if command == "backup":
        file.unlink()
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    limited = ["sh", "-c", 'ulimit -f 100 && exec "$@"', "sh"]  # blocks of 512 bytes
    text = refusal(run(own_server, command, str(file), before=limited))
    assert str(path) in text and str(file) in text
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
    names = [] if command == "backup" else ["copy.db"]
    assert [each.name for each in directory.iterdir()] == names


async def test_a_backup_does_not_keep_a_server_from_starting(
    own_server: Server, tmp_path: Path
) -> None:
    """A backup and a start need no lock of each other."""
    path = Path(own_server.settings["STEADWIRE_STORE_PATH"])
    async with own_server.api() as api:
        publishing = Publishing(api, "a")
        await publishing.up_to(50)
        for n in range(3):
            if n:
                own_server.kill9()  # its log is still there
            backup = asyncio.create_task(
                asyncio.to_thread(run, own_server, "backup", str(tmp_path / f"{n}.db"))
            )
            if n:
                await own_server.start()
                api.drop_connections()
            await publishing.up_to(publishing.count + 20)
            status, stdout, stderr = await backup
            assert (status, stderr) == (0, ""), stdout
    assert await own_server.terminate() == 0
    names = sorted(each.name for each in path.parent.iterdir())
    assert names == ["steadwire.db", "steadwire.db.lock"]
    for n in range(3):
        assert run(own_server, "restore", str(tmp_path / f"{n}.db"))[0] == 0

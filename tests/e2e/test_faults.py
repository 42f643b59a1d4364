"""Faults of the disk below a running server: a locked database, a full disk.

Contract G1 and G6: nothing answers success for work that was not done, what was
acknowledged is there afterwards, and the server comes back by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness import server as harness
from tests.harness.api import Api
from tests.harness.raw import RawClient
from tests.harness.server import Server

MakeServer = Callable[..., Server]

TEMPORARY = {"code": 100, "message": "internal server error", "temporary": True}
TEXT = "x" * 4000


@contextlib.contextmanager
def locked(server: Server) -> Iterator[None]:
    """Hold the write lock of the server's database, as a shell in it would."""
    path = server.settings["STEADWIRE_STORE_PATH"]
    thief = sqlite3.connect(path, isolation_level=None, timeout=10.0)
    with contextlib.closing(thief):
        thief.execute("BEGIN IMMEDIATE")
        yield
        thief.execute("ROLLBACK")


async def post(api: Api, channel: str, n: int, text: str = "") -> dict[str, Any]:
    """Publish number *n* under its own key; return the whole answer."""
    data = {"n": n, "text": text}
    body = {"channel": channel, "data": data, "idempotency_key": f"key {n}"}
    response = await api.post("publish", body)
    assert response.status == 200
    answer: dict[str, Any] = response.json
    return answer


async def ready(api: Api) -> tuple[int, dict[str, Any]]:
    """Return status and body of the readiness."""
    response = await api.request("GET", "/health/ready")
    return response.status, response.json


async def is_live(api: Api) -> bool:
    return (await api.request("GET", "/health/live")).status == 200


async def until_ready(api: Api) -> None:
    """Wait until the server says by itself that it can serve again."""
    async with asyncio.timeout(15.0):
        while (await ready(api))[0] != 200:
            await asyncio.sleep(0.05)  # between two looks


async def stored(api: Api, channel: str) -> list[tuple[int, int]]:
    """Return offset and number of everything kept."""
    publications = await api.whole_history(channel)
    return [(each["offset"], each["data"]["n"]) for each in publications]


async def published(client: RawClient, channel: str, text: str = "") -> dict[str, Any]:
    """Publish over the WebSocket; return the reply without its id."""
    data = {"n": -1, "text": text}
    reply = await client.request(publish={"channel": channel, "data": data})
    del reply["id"]
    return reply


# A database that somebody else has locked


@pytest.fixture
async def impatient(make_server: MakeServer) -> Server:
    """Return a server that waits for a lock only 0.2 s, and caches nothing."""
    settings = {
        "STEADWIRE_STORE_LOCK_TIMEOUT": "0.2",
        "STEADWIRE_STORE_CACHE_SIZE": "1",
    }
    return await make_server(settings).start()


@pytest.mark.requirement("R23", "B34", "B40")
async def test_twenty_publishes_of_which_four_meet_a_locked_database(
    impatient: Server, channel: str
) -> None:
    server = impatient
    async with server.api() as api, await server.raw() as subscriber:
        await subscriber.subscribe(channel)
        answers = [await post(api, channel, n) for n in range(1, 9)]
        with locked(server):
            # Of these the first is tried twice, the second opens the breaker.
            met = [await post(api, channel, n) for n in range(9, 13)]
            assert met == [{"error": TEMPORARY}] * 4
            status, body = await ready(api)
            assert (status, body["status"]) == (503, "unavailable")
            assert "locked" in body["reason"]
            assert await is_live(api)
            # Stored publications can be read all the while.
            assert await stored(api, channel) == [(n, n) for n in range(1, 9)]
        await until_ready(api)
        answers += [await post(api, channel, n) for n in range(13, 21)]
        offsets = [answer["result"]["offset"] for answer in answers]
        assert offsets == list(range(1, 17))
        # 16 arrived: exactly the acknowledged ones.
        numbers = [*range(1, 9), *range(13, 21)]
        assert await stored(api, channel) == list(zip(offsets, numbers, strict=True))

        again = [await post(api, channel, n) for n in range(9, 13)]
        offsets += [answer["result"]["offset"] for answer in again]
        assert offsets == list(range(1, 21))
        # A publisher that did not hear that, either, is told the same again.
        assert [await post(api, channel, n) for n in range(9, 13)] == again

        numbers += range(9, 13)
        expected = list(zip(offsets, numbers, strict=True))
        seen = await subscriber.publications(channel, 20)
        assert [(each["offset"], each["data"]["n"]) for each in seen] == expected
        await server.restart()
        api.drop_connections()
        assert await stored(api, channel) == expected


@pytest.mark.requirement("B36", "B42")
async def test_a_locked_database_over_the_websocket(
    impatient: Server, channel: str
) -> None:
    server = impatient
    async with (
        server.api() as api,
        await server.raw() as client,
        await server.raw() as subscriber,
    ):
        await subscriber.subscribe(channel)
        with locked(server):
            assert await published(client, channel) == {"error": TEMPORARY}
            # Several in flight on one connection fail each for itself.
            await client.send(
                *(
                    {"id": 100 + n, "publish": {"channel": channel, "data": {"n": n}}}
                    for n in range(5)
                )
            )
            replies = [await client.message() for _ in range(5)]
            assert replies == [{"id": 100 + n, "error": TEMPORARY} for n in range(5)]
            # Reading goes on, and so does the connection.
            assert (await subscriber.request(history={"channel": channel}))["history"][
                "offset"
            ] == 0
            assert (await ready(api))[0] == 503
        await until_ready(api)
        assert await published(client, channel) == {"publish": {}}
        (publication,) = await subscriber.publications(channel, 1)
        assert publication["offset"] == 1
        # None of those that failed was stored.
        assert await stored(api, channel) == [(1, -1)]


async def test_subscribing_does_not_need_the_lock(
    impatient: Server, channel: str
) -> None:
    async with impatient.api() as api:
        for n in (1, 2, 3):
            await post(api, channel, n)
        with locked(impatient):
            async with await impatient.raw() as client:
                first = await client.subscribe(channel)
                assert first["offset"] == 3
            async with await impatient.raw() as client:
                result = await client.subscribe(
                    channel, recover=True, offset=1, epoch=first["epoch"]
                )
                assert result["recovered"]
                assert [each["offset"] for each in result["publications"]] == [2, 3]


async def test_killed_while_the_database_is_locked(
    impatient: Server, channel: str
) -> None:
    """A publish that waited was not acknowledged and is not stored; the rest is."""
    server = impatient
    async with server.api() as api:
        for n in (1, 2, 3):
            await post(api, channel, n)
        with locked(server):
            assert await post(api, channel, 4) == {"error": TEMPORARY}
            server.kill9()
        api.drop_connections()
        await server.start()
        assert await stored(api, channel) == [(n, n) for n in (1, 2, 3)]
        assert (await post(api, channel, 4))["result"]["offset"] == 4


async def test_stopped_while_the_database_is_locked(
    impatient: Server, channel: str
) -> None:
    """SIGTERM ends it in time, and nothing acknowledged is lost."""
    server = impatient
    async with server.api() as api:
        for n in (1, 2, 3):
            await post(api, channel, n)
        with locked(server):
            assert await server.terminate(within=10.0) == 0
        api.drop_connections()
        await server.start()
        assert await stored(api, channel) == [(n, n) for n in (1, 2, 3)]


async def test_started_while_the_database_is_locked(
    make_server: MakeServer, channel: str
) -> None:
    """A shell in the database does not keep it from starting; health says so."""
    server = await make_server({"STEADWIRE_STORE_LOCK_TIMEOUT": "0.2"}).start()
    async with server.api() as api:
        await post(api, channel, 1)
        server.kill9()
        api.drop_connections()
        with locked(server):
            await server.start()
            for _ in range(2):  # the second one opens the breaker
                assert await post(api, channel, 2) == {"error": TEMPORARY}
            assert (await ready(api))[0] == 503
        await until_ready(api)
        assert (await post(api, channel, 2))["result"]["offset"] == 2


@pytest.mark.requirement("R17", "L4")
async def test_a_broadcast_of_which_a_part_meets_a_locked_database(
    make_server: MakeServer, channel: str
) -> None:
    chat = {"history_size": 100, "history_ttl": 3600}
    server = await make_server(
        {
            "STEADWIRE_STORE_LOCK_TIMEOUT": "0.2",
            "STEADWIRE_CHANNELS_WITHOUT_NAMESPACE": json.dumps(
                {**chat, "allow_subscribe_for_client": True}
            ),
            "STEADWIRE_CHANNELS_NAMESPACES": json.dumps(
                [{"name": "live", "allow_subscribe_for_client": True}]
            ),
        }
    ).start()
    channels = [channel, "live:x", "nowhere:x"]
    body = {"channels": channels, "data": 1}
    async with server.api() as api, await server.raw() as subscriber:
        await subscriber.subscribe("live:x")
        await subscriber.subscribe(channel)
        with locked(server):
            for n in (1, 2):  # the second one opens the breaker
                assert await post(api, channel, n) == {"error": TEMPORARY}
            result = await api.call("broadcast", body)
            unknown = {"code": 102, "message": "unknown channel"}
            assert result["responses"] == [
                {"error": TEMPORARY},
                {"result": {}},
                {"error": unknown},
            ]
            assert (result["delivered"], result["stored"]) == (1, 0)
            stored_, other = result["failed"]
            assert (stored_["channel"], stored_["code"]) == (channel, 100)
            assert "locked" in stored_["reason"]
            assert other == {
                "channel": "nowhere:x",
                "code": 102,
                "reason": "unknown channel",
            }
            # Who needs no store goes on being served.
            (live,) = await subscriber.publications("live:x", 1)
            assert live["data"] == 1
        await until_ready(api)
        result = await api.call("broadcast", body)
        assert (result["delivered"], result["stored"]) == (2, 1)
        (once,) = await subscriber.publications(channel, 1)
        assert once == {"data": 1, "offset": 1}


# A disk that is full


async def fill_up(api: Api, channel: str, start: int) -> tuple[list[int], list[int]]:
    """Publish until four were refused; return the numbers taken and refused."""
    taken: list[int] = []
    refused: list[int] = []
    for n in range(start, start + 2000):
        answer = await post(api, channel, n, TEXT)
        if "result" in answer:
            taken.append(n)
        else:
            assert answer == {"error": TEMPORARY}
            refused.append(n)
        if len(refused) == 4:
            return taken, refused
    raise AssertionError("it never was full")


async def came_back(
    api: Api, channel: str, taken: list[int], refused: list[int]
) -> list[tuple[int, int]]:
    """Repeat what was refused; return what must be stored now."""
    await until_ready(api)
    assert await stored(api, channel) == list(enumerate(taken, 1))
    for n in refused:
        taken.append(n)
        answer = await post(api, channel, n, TEXT)
        assert answer["result"]["offset"] == len(taken)
    expected = list(enumerate(taken, 1))
    assert await stored(api, channel) == expected
    return expected


async def test_a_file_that_must_not_grow(impatient: Server, channel: str) -> None:
    """A limit on the size of files: write() fails with EFBIG."""
    server = impatient
    log = Path(server.settings["STEADWIRE_STORE_PATH"] + "-wal")
    async with server.api() as api:
        taken = list(range(1, 11))
        for n in taken:
            assert (await post(api, channel, n, TEXT))["result"]["offset"] == n
        process = server.process
        _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (log.stat().st_size + 100_000, hard))
        more, refused = await fill_up(api, channel, 11)
        assert more
        status, body = await ready(api)
        assert status == 503 and "cannot write" in body["reason"], body
        assert await is_live(api)
        async with await server.raw() as client:
            assert await published(client, channel) == {"error": TEMPORARY}
        process.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
        expected = await came_back(api, channel, taken + more, refused)
        await server.restart()
        api.drop_connections()
        assert await stored(api, channel) == expected


@pytest.fixture
async def small_disk(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[tuple[Server, Path]]:
    """Return a server whose store is on a disk of 4 MiB, and that disk seen from here.

    The disk is a tmpfs that only the server's own mount namespace has.
    """
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        subprocess.run([*namespace, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system gives nobody a mount namespace")
    disk = tmp_path / "disk"
    disk.mkdir()
    launched = harness.launched
    script = 'mount -t tmpfs -o size=4m tmpfs "$0" && exec "$@"'

    def on_disk(*command: str | Path) -> list[str]:
        return launched(*namespace, "sh", "-c", script, disk, *command)

    monkeypatch.setattr(harness, "launched", on_disk)
    settings = {
        "STEADWIRE_STORE_PATH": str(disk / "steadwire.db"),
        "STEADWIRE_STORE_CACHE_SIZE": "1",
    }
    server = await make_server(settings).start()
    yield server, Path(f"/proc/{server.process.pid}/root{disk}")


@pytest.mark.requirement("B40")
async def test_a_full_disk(small_disk: tuple[Server, Path], channel: str) -> None:
    """No space left: write() fails with ENOSPC."""
    server, disk = small_disk
    async with server.api() as api:
        taken = list(range(1, 11))
        for n in taken:
            assert (await post(api, channel, n, TEXT))["result"]["offset"] == n
        filler = disk / "somebody else's"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
        filler.write_bytes(b"\0" * (free - 200_000))
        more, refused = await fill_up(api, channel, 11)
        assert more
        status, body = await ready(api)
        assert status == 503 and "full" in body["reason"], body
        assert await is_live(api)
        async with await server.raw() as client:
            # A checkpoint of the log may have made room meanwhile.
            while (reply := await published(client, channel, TEXT)) == {"publish": {}}:
                more.append(-1)
                assert len(more) < 2000
            assert reply == {"error": TEMPORARY}
        filler.unlink()
        await came_back(api, channel, taken + more, refused)

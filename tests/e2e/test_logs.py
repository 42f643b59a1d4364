"""The log of a real server: each step of a connection, and never in the way."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.api import Api
from tests.harness.metrics import scrape
from tests.harness.process import environment, launched
from tests.harness.raw import RawClient
from tests.harness.server import Server

ROOT = Path(__file__).resolve().parents[2]


async def timeline(server: Server, client: str) -> list[dict[str, Any]]:
    """Return a connection's lines, once the last is there."""
    async with asyncio.timeout(10.0):
        while True:
            found = [line for line in server.log() if line.get("connection") == client]
            if found and found[-1]["event"] == "connection closed":
                return found
            await asyncio.sleep(0.005)


@pytest.mark.requirement("L25")
async def test_the_life_of_a_connection_is_found_by_its_id(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server({"STEADWIRE_LOG_LEVEL": "debug"}).start()
    async with server.api() as api, await server.raw(connected=False) as client:
        reply = await client.connect()
        name = reply["client"]
        await client.subscribe("news")
        await api.publish("news", {"secret": "in a payload"})
        await client.publications("news", 1)
        await client.request(unsubscribe={"channel": "news"})
        await client.request(rpc={"method": "no"})
        await api.call("disconnect", {"user": ""})
        assert (await client.closed()).code == 3503
        lines = await timeline(server, name)
    assert [line["event"] for line in lines] == [
        "connection opened",
        "connection connected",
        "channel subscribed",
        "channel unsubscribed",
        "connection closing",
        "connection closed",
    ]
    assert [line["level"] for line in lines] == [
        "info", "info", "debug", "debug", "debug", "info",
    ]  # fmt: skip
    assert lines == sorted(lines, key=lambda line: line["time"])
    assert lines[1]["user"] == ""
    assert lines[2]["channel"] == lines[3]["channel"] == "news"
    last = lines[-1]
    assert 0.0 <= last.pop("seconds") < 60.0
    del last["time"]
    assert last == {
        "level": "info",
        "event": "connection closed",
        "connection": name,
        "by": "server",
        "code": 3503,
        "reason": "force disconnect",
        "commands": 4,
        "messages": 5,
        "dropped": 0,
    }
    assert "in a payload" not in server.output()  # R47


async def test_the_example_of_the_handbook_is_what_a_server_writes(
    server: Server,
) -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    [(name, example)] = re.findall(r"\$ grep (\S+) .*\n((?:\{.*\}\n)+)", text)
    documented = [json.loads(line) for line in example.splitlines()]
    assert all(name in line.values() for line in documented)
    async with (
        server.api() as api,
        await server.raw(connected=False) as client,
    ):
        name = (await client.connect())["client"]
        await api.call("disconnect", {"user": ""})
        await client.closed()
    await timeline(server, name)
    written = [line for line in server.log() if name in line.values()]
    assert [[*line] for line in written] == [[*line] for line in documented]
    assert [line["event"] for line in written] == [line["event"] for line in documented]
    for key in ("by", "code", "reason", "level"):
        assert written[-1][key] == documented[-1][key]


async def test_who_ended_it_is_said(server: Server) -> None:
    async with await server.raw(connected=False) as client:
        name = (await client.connect())["client"]
        client.reset()
    lines = await timeline(server, name)
    assert (lines[-1]["by"], lines[-1]["code"]) == ("client", 1006)
    async with await server.raw(connected=False) as client:
        name = (await client.connect())["client"]
        await client.send_text("no JSON")
        await client.closed()
    lines = await timeline(server, name)
    assert (lines[-1]["by"], lines[-1]["code"]) == ("server", 3501)


async def test_users_are_hashed_where_that_is_set(
    make_server: Callable[..., Server],
) -> None:
    settings = {
        "STEADWIRE_LOG_HASH_USERS": "true",
        "STEADWIRE_LOG_HASH_KEY": "a key of two machines",
        "STEADWIRE_LOG_LEVEL": "debug",
    }
    server = await make_server(settings).start()
    async with await server.raw(connected=False) as client:
        name = (await client.connect())["client"]
        await client.subscribe("dm#zebediah")
    lines = await timeline(server, name)
    assert lines[2]["event"] == "channel subscribed"
    assert lines[2]["channel"] not in ("", "dm#zebediah")
    assert "zebediah" not in server.output()
    assert "two machines" not in server.output()


async def work(server: Server, connections: int = 200) -> None:
    """Connect, publish and be closed; all must be as ever."""
    for _ in range(connections // 50):
        clients = await asyncio.gather(*(server.raw() for _ in range(50)))
        await asyncio.gather(*(client.subscribe("ch") for client in clients))
        async with server.api() as api:
            offset = await api.publish("ch", 1)
        got = await asyncio.gather(*(one.publications("ch", 1) for one in clients))
        assert [[pub["offset"] for pub in each] for each in got] == [[offset]] * 50
        for client in clients:
            client.reset()


@contextlib.contextmanager
def unread_pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield reader, writer
    finally:
        for descriptor in (reader, writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.mark.requirement("L8")
async def test_a_log_that_nobody_reads_is_in_nobodys_way(
    make_server: Callable[..., Server],
) -> None:
    with unread_pipe() as (_, writer):
        settings = {"STEADWIRE_LOG_LEVEL": "debug"}
        server = await make_server(settings, stderr=writer).start()
        os.close(writer)
        async with server.api() as api:
            # 4 KiB are in the pipe and some in the thread; 10,000 lines may wait.
            await work(server)
            assert (await scrape(api))["log_lines_dropped_total"] == 0
        assert await server.terminate() == 0


async def test_lines_are_lost_and_counted_when_nobody_reads_them_at_all(
    make_server: Callable[..., Server],
) -> None:
    with unread_pipe() as (reader, writer):
        settings = {"STEADWIRE_LOG_LEVEL": "debug"}
        server = await make_server(settings, stderr=writer).start()
        os.close(writer)
        async with server.api() as api, await server.raw() as client:
            before = await scrape(api)
            for _ in range(20):
                # A subscribe and an unsubscribe are a line each.
                commands: list[dict[str, Any]] = []
                for number in range(300):
                    channel = {"channel": f"ch{number}"}
                    commands += [
                        {"id": number * 2 + 9, "subscribe": channel},
                        {"id": number * 2 + 10, "unsubscribe": channel},
                    ]
                await client.send(*commands)
                for _ in range(600):
                    await client.message()
            after = await scrape(api)
            lost = after["log_lines_dropped_total"]
            lines = after.since(before)["commands_total{subscribe}"] * 2
            assert lines == 12_000
            assert lines - 10_000 - 1000 <= lost <= lines - 10_000
        os.set_blocking(reader, True)
        ended = asyncio.create_task(server.terminate())
        text = await asyncio.to_thread(_read_all, reader)
        assert await ended == 0
    got = [json.loads(line) for line in text.decode().splitlines()]
    said = [line["count"] for line in got if "were dropped" in line["event"]]
    assert sum(said) >= lost


def _read_all(descriptor: int) -> bytes:
    text = b""
    while data := os.read(descriptor, 65536):
        text += data
    return text


async def test_a_log_whose_reader_is_gone_is_in_nobodys_way(
    make_server: Callable[..., Server],
) -> None:
    with unread_pipe() as (reader, writer):
        server = await make_server(stderr=writer).start()
        os.close(writer)
        os.close(reader)
        async with server.api() as api:
            await work(server, 50)
            async with asyncio.timeout(10.0):
                # opened and connected
                while (await scrape(api))["log_lines_dropped_total"] < 2 * 50:
                    await asyncio.sleep(0.01)
        assert await server.terminate() == 0


async def test_a_full_disk_is_in_nobodys_way(
    make_server: Callable[..., Server],
) -> None:
    with open("/dev/full", "wb") as full:
        server = await make_server(stderr=full.fileno()).start()
        async with server.api() as api:
            await work(server, 50)
            async with asyncio.timeout(10.0):
                while (await scrape(api))["log_lines_dropped_total"] < 2 * 50:
                    await asyncio.sleep(0.01)
        assert await server.terminate() == 0


async def test_the_console_is_for_people(make_server: Callable[..., Server]) -> None:
    server = await make_server({"STEADWIRE_LOG_FORMAT": "console"}).start()
    async with await server.raw():
        pass
    assert await server.terminate() == 0
    assert " info     connection opened connection=" in server.output()


async def test_a_level_leaves_out_what_is_less(
    make_server: Callable[..., Server],
) -> None:
    server = await make_server({"STEADWIRE_LOG_LEVEL": "warning"}).start()
    async with await server.raw():
        pass
    assert await server.terminate() == 0
    assert server.log() == []


async def test_without_a_stderr_nothing_is_written_in_its_place(
    tmp_path: Path,
) -> None:
    # The next file that is opened gets the number 2: that would be the store.
    path = tmp_path / "steadwire.db"
    settings = {
        "STEADWIRE_STORE_PATH": str(path),
        "STEADWIRE_API_KEY": "key",
        "STEADWIRE_SERVER_PORT": "0",
    }
    command = ("sh", "-c", 'exec "$0" -m service serve 2>&- <&-', sys.executable)
    process = await asyncio.create_subprocess_exec(
        *launched(*command),
        cwd=tmp_path,
        env=environment(settings),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30.0):
            found = None
            while found is None:
                text = await process.stdout.readline()
                assert text, "it ended"
                found = re.search(rb"ws://127.0.0.1:(\d+)/", text)
        async with Api(int(found[1]), "key") as api:
            for number in range(20):
                client = await RawClient.open(api.port)
                await client.connect()
                assert await api.publish("c", number) == number + 1
                client.reset()
    finally:
        process.terminate()
        await process.wait()
    assert process.returncode == 0
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)

"""The fault proxy by hand: the command line, and commands on stdin."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faultproxy.__main__ import COMMANDS
from tests.harness.process import environment, launched
from tests.harness.sockets import TcpClient

pytestmark = pytest.mark.timeout(30)


class Command:
    """The proxy as a process in front of a listener of the test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()

    async def say(self, command: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self.line()


@pytest.fixture
async def target() -> AsyncIterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture
async def command(target: socket.socket) -> AsyncIterator[Command]:
    process = await asyncio.create_subprocess_exec(
        *launched(sys.executable, "-m", "tests.faultproxy"),
        *("--to", str(target.getsockname()[1])),
        *("--profile", "unstable", "--seed", "7", "--loss", "0", "--cut-every", "600"),
        cwd=Path(__file__).parents[2],
        env=environment({}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    yield Command(process)
    process.kill()
    await process.wait()


async def test_it_says_where_and_how_and_does_what_it_is_told(
    command: Command, target: socket.socket
) -> None:
    started = await command.line()
    expected = (
        r"listening on 127\.0\.0\.1:(\d+), to 127\.0\.0\.1:\d+; seed 7; "
        r"Profile\(delay=0\.05, jitter=0\.02, loss=0\.0, rate=None, cut_every=600\.0\)"
    )
    found = re.fullmatch(expected, started)
    assert found, started

    client = await TcpClient.connect(int(found[1]))
    sock, _ = await asyncio.get_running_loop().sock_accept(target)
    sock.setblocking(False)
    server = TcpClient(sock)
    await client.send(b"question")
    assert await server.read_exactly(8) == b"question"
    assert await command.say("black-hole down") == "done: black-hole down"
    await server.send(b"lost")
    assert await command.say("half-close up") == "done: half-close up"
    with pytest.raises(EOFError, match="0 bytes unread"):
        await server.read_exactly(1)
    status = "1 connections of 1; bytes up 8, down 0"
    assert await command.say("status") == status
    assert await command.say("reset") == "done: reset"
    with pytest.raises(ConnectionResetError):
        await client.read_exactly(1)


async def test_every_command_of_the_help_is_one(command: Command) -> None:
    await command.line()
    words = re.findall(r"^  ([a-z-]+)(.*?)(?:   |$)", COMMANDS, re.M)
    values = {"RATE|none": "1000", "NAME": "poor", "DIRECTION": "up"}
    for word, rest in words:
        optional = re.sub(r" \[.*?\]", "", rest)
        for form in {optional, rest.replace("[", "").replace("]", "")}:
            line = word + "".join(f" {values[name]}" for name in form.split())
            answer = await command.say(line)
            assert answer in (f"done: {line}", "0 connections of 0; bytes up 0, down 0")
    for wrong in ("", "up", "half-close", "profile none", "throttle fast", "stall me"):
        assert not (await command.say(wrong)).startswith("done")

"""The examples of README and docs, as they are written there, on other ports."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.harness.emulators import Emulator
from tests.harness.ports import free_port
from tests.harness.process import ROOT, TOOLS, environment, launched
from tests.harness.tools import node

Start = Callable[..., subprocess.Popen[str]]

STEADWIRE = f"{sys.executable} -m service"


def block(page: str, language: str, word: str) -> str:
    """Return the block of code in *page* that has *word* in it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (only,) = (each for each in found if word in each)
    return str(only)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start programs in an empty folder; they end with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(*command: str | Path, **settings: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            launched(*command),
            cwd=tmp_path,
            # A shared machine may hold a loop up for seconds.
            env=environment({"STEADWIRE_OVERLOAD_LOOP_LAG": "0", **settings}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str], beginning: str = "") -> str:
    """Return the next line that *process* prints and that begins so."""
    assert process.stdout is not None
    for each in process.stdout:
        if each.startswith(beginning):
            return each.rstrip("\n")
    raise AssertionError(f"it ended before a line that begins with {beginning!r}")


def pasted(command: str) -> str:
    """Run what a user pastes into a terminal, and return what it prints."""
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def javascript(folder: Path, text: str) -> list[str | Path]:
    (folder / "client.mjs").write_text(text)
    (folder / "node_modules").symlink_to(TOOLS / "node_modules")
    return [node("centrifuge", "ws"), "client.mjs"]


def python(folder: Path, text: str) -> list[str | Path]:
    (folder / "client.py").write_text(text)
    return [sys.executable, "client.py"]


CLIENTS = {
    "js": (javascript, "{ text: 'hello' }"),
    "python": (python, "{'text': 'hello'}"),
}


@pytest.mark.parametrize("language", CLIENTS)
def test_the_first_conversation_and_an_outage(
    start: Start, tmp_path: Path, language: str
) -> None:
    assert shutil.which("curl"), "the README uses it"
    port = str(free_port())
    serve = (sys.executable, "-m", "service", "serve", "--port", port)
    server = start(*serve)
    # Published before anybody listens.
    answer = pasted(line(server, "curl "))
    assert '"offset":1' in answer
    assert answer.endswith("\n")

    write, printed = CLIENTS[language]
    text = block("README.md", language, "from" if language == "python" else "import")
    assert "127.0.0.1:8000" in text
    client = start(
        *write(tmp_path, text.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    )
    assert line(client) == f"1 {printed}"

    server.send_signal(signal.SIGINT)
    server.communicate(timeout=30)
    again = start(*serve)
    assert '"offset":2' in pasted(line(again, "curl "))
    assert line(client) == f"2 {printed}"


def test_the_first_private_channel(start: Start, tmp_path: Path) -> None:
    commands = block("docs/tokens.md", "sh", "export STEADWIRE_TOKEN").replace(
        "steadwire", STEADWIRE
    )
    # What the terminal prints: the token; and the secret that its variable has now.
    name = "STEADWIRE_TOKEN_HMAC_SECRET_KEY"
    out = pasted(f"cd {tmp_path} && export PYTHONPATH={ROOT}\n{commands}echo ${name}")
    token, secret = out.split()
    port = str(free_port())
    settings = {name: secret, "STEADWIRE_API_KEY": "k" * 32}
    server = start(sys.executable, "-m", "service", "serve", "--port", port, **settings)
    curl = line(server, "curl ").replace('"channel":"chat"', '"channel":"news"')
    client = start(
        sys.executable,
        "-c",
        "import asyncio, sys\n"
        "from centrifuge import Client, ClientEventHandler\n"
        "class Printer(ClientEventHandler):\n"
        "    async def on_subscribed(self, ctx): print(ctx.channel, flush=True)\n"
        "    async def on_publication(self, ctx): print(ctx.pub.data, flush=True)\n"
        "async def main():\n"
        "    url, token = sys.argv[1:]\n"
        "    await Client(url, Printer(), token=token).connect()\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n",
        f"ws://127.0.0.1:{port}/connection/websocket",
        token,
    )
    assert line(client) == "news"
    assert '"offset":1' in pasted(f"export STEADWIRE_API_KEY={'k' * 32}\n{curl}")
    assert line(client) == "{'text': 'hello'}"


def test_hooks_in_python(start: Start, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(block("docs/hooks.md", "python", "handlers ="))
    port = str(free_port())
    serve = (sys.executable, "-m", "service", "serve", "--port", port)
    line(start(*serve, "--app", "hooks:handlers"), "curl ")
    url = f"ws://127.0.0.1:{port}/connection/websocket"
    with connect(url) as socket:
        socket.send('{"id":1,"connect":{}}')
        assert json.loads(socket.recv(10))["error"]["code"] == 401
    with connect(url) as socket:
        socket.send('{"id":1,"connect":{"token":"letmein"}}')
        assert list(json.loads(socket.recv(10))["connect"]["subs"]) == ["news"]
        socket.send('{"id":2,"rpc":{"method":"whoami"}}')
        assert json.loads(socket.recv(10))["rpc"] == {"data": {"user": "ann"}}


def test_a_table_on_an_emulator(start: Start, ministack: Emulator) -> None:
    commands = block("docs/deployment.md", "sh", "tables create")
    assert "http://127.0.0.1:4566" in commands
    port = str(free_port())
    commands = (
        commands.replace("http://127.0.0.1:4566", ministack.endpoint)
        .replace("steadwire serve", f"exec {STEADWIRE} serve --port {port}")
        .replace("steadwire tables", f"{STEADWIRE} tables")
    )
    server = start("bash", "-c", commands, STEADWIRE_DYNAMODB_TABLE="examples")
    assert '"offset":1' in pasted(line(server, "curl "))

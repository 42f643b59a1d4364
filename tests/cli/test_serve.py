"""The command as a user meets it: what it prints, and how it refuses to start."""

from __future__ import annotations

import json
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.harness.process import environment, launched

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ``python -m service`` with arguments, and environment as keywords."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **settings: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            launched(sys.executable, "-m", "service", *arguments),
            cwd=tmp_path,
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def assert_refused(process: subprocess.Popen[str]) -> str:
    """Return the one line on stderr; exit status 2 and nothing else."""
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2, stderr
    assert stdout == ""
    (line,) = stderr.splitlines()
    assert line.startswith("steadwire: ")
    return line.removeprefix("steadwire: ")


def announced(process: subprocess.Popen[str]) -> tuple[dict[str, str], list[str]]:
    """Return the addresses by name, and the words of the line to paste."""
    assert process.stdout is not None
    addresses: dict[str, str] = {}
    for line in process.stdout:
        if line.startswith("curl "):
            return addresses, shlex.split(line)
        name, _, address = line.strip().partition(" ")
        addresses[name] = address.strip()
    raise AssertionError(f"no line beginning with curl: {addresses}")


def paste(words: list[str]) -> Any:
    """Do what curl would."""
    assert words[:4] == ["curl", "-sS", "-w", r"\n"]  # the prompt is on its own line
    url, options = words[4], words[5:]
    values = list(zip(options[::2], options[1::2], strict=True))
    headers = dict(value.split(": ", 1) for name, value in values if name == "-H")
    (data,) = [value for name, value in values if name == "-d"]
    request = urllib.request.Request(url, data.encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@pytest.mark.requirement("R48")
def test_the_announcement_is_true(start: Start) -> None:
    process = start("serve", "--port", "0", "--store", ":memory:")
    addresses, words = announced(process)
    host = addresses["API"].removesuffix("/api")
    assert host.startswith("http://127.0.0.1:")
    assert addresses["WebSocket"] == f"ws{host[4:]}/connection/websocket"
    with urllib.request.urlopen(addresses["health"], timeout=60) as response:
        assert response.status == 200
    assert paste(words)["result"]["offset"] == 1
    assert paste(words)["result"]["offset"] == 2
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 0
    # The log: a line for each setting that is changed, and the end.  # R48
    lines = [json.loads(line)["event"] for line in stderr.splitlines()]
    # Certificates that the machine's environment names are settings too, and a machine
    # that stalls is told of.
    others = ("tls.", "the shed level", "the event loop")
    assert [line for line in lines if not line.startswith(others)] == [
        "server.port is 0, not 8000",
        "store.path is :memory:, not steadwire.db",
        "draining",
        "drained",
    ]


def test_a_key_that_was_chosen_is_not_printed(start: Start) -> None:
    settings = {"STEADWIRE_API_KEY": "quite secret", "STEADWIRE_STORE_PATH": ":memory:"}
    process = start("serve", "--port", "0", **settings)
    _, words = announced(process)
    assert "X-API-Key: $STEADWIRE_API_KEY" in words
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=15)
    assert process.returncode == 0
    assert "quite" not in stdout + stderr


def test_the_port_is_in_use(start: Start, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = assert_refused(start("serve", "--port", str(port)))
    assert text == f"port {port} on 127.0.0.1 is in use"
    # Noticed before anything was opened.
    assert list(tmp_path.iterdir()) == []


def test_the_store_is_not_one(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database\n" * 100)
    text = assert_refused(start("serve", "--port", "0", "--store", "notes.txt"))
    assert "notes.txt" in text
    assert file.read_text() == "not a database\n" * 100


def test_an_unknown_key_in_the_file(start: Start, tmp_path: Path) -> None:
    (tmp_path / "steadwire.toml").write_text("[server]\nprot = 80\n")
    assert "prot" in assert_refused(start("serve"))


def test_an_unknown_variable(start: Start) -> None:
    text = assert_refused(start("serve", STEADWIRE_SERVER_PROT="80"))
    assert "STEADWIRE_SERVER_PROT" in text


def test_a_value_out_of_range(start: Start) -> None:
    assert "server.port" in assert_refused(start("serve", "--port", "65536"))


def test_production_is_refused(start: Start) -> None:
    assert "production" in assert_refused(
        start("serve", STEADWIRE_ENVIRONMENT="production")
    )


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "-h"]])
def test_help(start: Start, arguments: list[str]) -> None:
    stdout, stderr = start(*arguments).communicate(timeout=60)
    assert stderr == ""
    assert stdout.startswith("Usage: python -m service")


def test_an_option_that_is_none(start: Start) -> None:
    process = start("serve", "--prot", "1")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--prot" in stderr


HOOKS = """
from service.core.hooks import ConnectEvent, ConnectResult, Handlers


async def connect(event: ConnectEvent) -> ConnectResult:
    return ConnectResult(user="ann", channels=("news",))


def make() -> Handlers:
    return Handlers(connect=connect)


handlers = make()
number = 1
"""


@pytest.mark.parametrize("name", ["hooks:handlers", "hooks:make"])
def test_hooks_in_python_are_served_and_drained(
    start: Start, tmp_path: Path, name: str
) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    patient = {"STEADWIRE_OVERLOAD_LOOP_LAG": "0"}
    process = start("serve", "--port", "0", "--app", name, **patient)
    addresses, _ = announced(process)
    # A wait that ends in failure; its own pings would end it sooner on a busy machine.
    patience = {"open_timeout": 60.0, "close_timeout": 60.0, "ping_interval": None}
    with connect(addresses["WebSocket"], **patience) as socket:
        socket.send('{"id":1,"connect":{}}')
        reply = json.loads(socket.recv())
        assert list(reply["connect"]["subs"]) == ["news"]
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as end:
            socket.recv()
    assert end.value.rcvd is not None
    assert end.value.rcvd.code == 3001
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hooks", "expected MODULE:NAME"),
        (":handlers", "expected MODULE:NAME"),
        ("missing:handlers", "there is no module missing"),
        ("hooks:nothing", "not a service.core.hooks.Handlers"),
        ("hooks:number", "not a service.core.hooks.Handlers"),
    ],
)
def test_hooks_that_are_not_there(
    start: Start, tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "hooks.py").write_text(HOOKS)
    text = assert_refused(start("serve", "--port", "0", "--app", name))
    assert text.startswith(f"--app {name}: ")
    assert reason in text
    assert not (tmp_path / "steadwire.db").exists()


def test_a_mistake_in_the_module_of_hooks_is_shown(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "hooks.py").write_text("import nowhere_to_be_found\n")
    process = start("serve", "--port", "0", "--app", "hooks:handlers")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "nowhere_to_be_found" in stderr

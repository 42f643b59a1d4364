"""The agents of docs/agents.md, as they are written there, behind a real server."""

from __future__ import annotations

import importlib.util
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.agents import agent_settings, run_input, text_of, viewing
from tests.harness.fixtures import server_with
from tests.harness.ports import free_port
from tests.harness.process import ROOT, environment, launched
from tests.harness.server import Server

PORT = free_port()

server = server_with(agent_settings(PORT))


def example(word: str) -> str:
    text = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (only,) = (each for each in found if word in each)
    return str(only)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    started: list[subprocess.Popen[bytes]] = []

    def run(source: str) -> None:
        (tmp_path / "agent.py").write_text(source, encoding="utf-8")
        bind = f"127.0.0.1:{PORT}"
        # In one process, so that no worker of it is left.
        arguments = ("-m", "hypercorn", "agent:app", "--workers", "0", "--bind", bind)
        command = launched(sys.executable, *arguments)
        process = subprocess.Popen(command, cwd=tmp_path, env=environment({}))
        started.append(process)
        deadline = time.monotonic() + 30
        while not listens(PORT):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("word", "package", "text"),
    [
        ("pydantic_ai", "pydantic_ai", "success (no tool calls)"),
        ("ag_ui_langgraph", "ag_ui_langgraph", "Hello from a graph"),
        ("StreamingResponse", "starlette", "Hello by hand"),
    ],
)
async def test_an_agent_of_each_kind_runs_behind_the_relay(
    serve: Any, server: Server, word: str, package: str, text: str
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    # Pydantic AI's own model for tests, in place of one that needs a network.
    serve(example(word).replace("openai:gpt-5", "test"))
    message = {"id": "u1", "role": "user", "content": "hi"}
    asked = run_input(f"of-{package}", "r1", messages=[message])
    async with viewing(server, "/agui/helper", method="POST", json=asked) as view:
        events = await view.all()
    assert events[-1].type == "RUN_FINISHED", events[-1]
    texts = text_of(events)
    texts.pop("u1", None)
    assert text in texts.values()


async def test_an_agent_that_pushes(server: Server) -> None:
    names: dict[str, Any] = {}
    exec(example("httpx.post"), names)
    base = f"http://127.0.0.1:{server.port}"
    answer = names["push"](base, server.key, "pushed", "r1", ["Hello ", "there"])
    assert answer == {
        "next": 7,
        "live": False,
        "cancelled": False,
        "outcome": "finished",
    }
    async with viewing(server, "/agui/threads/pushed/events?after=0") as view:
        assert text_of(await view.until("RUN_FINISHED")) == {"m1": "Hello there"}

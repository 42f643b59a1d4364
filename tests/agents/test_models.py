"""The import of AG-UI's models: in a thread, and before the first run if possible."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.harness.process import environment

# Who imports what in a process that has imported nothing yet.
NOTING = """
import asyncio, json, sys, threading

class Noting:
    def find_spec(self, name, path=None, target=None):
        if name in ("ag_ui", "pydantic"):
            here = threading.current_thread() is threading.main_thread()
            imported.append((name, here))

imported = []
sys.meta_path.insert(0, Noting())
"""

OF_AGENTS = """
from service.app import create_app
from service.settings import load

async def main():
    agents = [{"name": "helper", "url": "http://127.0.0.1:9/"}]
    given = {"STORE_PATH": "agents.db", "AGENTS": json.dumps(agents)}
    app = create_app(load({f"STEADWIRE_{name}": given[name] for name in given}, {}))
    await app.start()
    print(imported, "pydantic_core" in sys.modules)
    await app.drain()

asyncio.run(main())
"""

IN_PYTHON = """
from service.agents import Run
from service.app import create_app
from service.settings import load

async def main():
    app = create_app(load({"STEADWIRE_STORE_PATH": "python.db"}, {}))
    threads = await app.threads()
    print(imported, "pydantic_core" in sys.modules)
    async with asyncio.TaskGroup() as runs:
        runs.create_task(run(threads, "t1"))
        runs.create_task(run(threads, "t2"))
    print(imported, "pydantic_core" in sys.modules)
    await app.drain()

async def run(threads, name):
    async with Run(threads, name, "r") as run:
        await run.say("42")

asyncio.run(main())
"""

IN_A_THREAD = "[('ag_ui', False), ('pydantic', False)] True"


def said(script: str, directory: Path) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", NOTING + script],
        cwd=directory,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    return [line for line in found.stdout.splitlines() if line.startswith("[")]


def test_a_server_with_agents_is_ready_when_all_is_imported(tmp_path: Path) -> None:
    assert said(OF_AGENTS, tmp_path) == [IN_A_THREAD]


def test_a_run_in_python_imports_off_the_event_loop(tmp_path: Path) -> None:
    assert said(IN_PYTHON, tmp_path) == ["[] False", IN_A_THREAD]

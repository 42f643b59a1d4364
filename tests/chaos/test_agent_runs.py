"""Runs of agents under SIGKILL: of the agent, of the server, of viewers, at random.

Whatever dies, each run that was started has exactly one terminal event; the log of each
thread is one that AG-UI's own client accepts; and each viewer, who resumes where it was
cut, has exactly the log, with nothing foreign, doubled or missing.

CHAOS_SEED in the environment replays a run's order of deaths.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chaos.slow_agent import WORDS
from tests.harness.agents import Event, agent_settings, run_input, viewing
from tests.harness.agui import started_judge
from tests.harness.backends import BACKENDS
from tests.harness.ports import free_port
from tests.harness.process import environment, launched
from tests.harness.server import Server

_AGENT = Path(__file__).with_name("slow_agent.py")
_VIEWER = Path(__file__).with_name("viewer.py")
VIEWERS = 4  # in processes of their own
_TERMINAL = ("RUN_FINISHED", "RUN_ERROR")


class AgentProcess:
    """The agent's process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            launched(sys.executable, _AGENT, str(self.port)),
            env=environment({}),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Person:
    """Starts one run after the other in a thread, and views it through every cut.

    Args:
        server: Where.
        number: Of the thread.
        by_process: A process views it, which can be killed.

    Attributes:
        seen: The events of the thread.
        runs: The ids of the runs that it began.
        ends: Their terminal events so far.
    """

    def __init__(self, server: Server, number: int, *, by_process: bool) -> None:
        self.server = server
        self.by_process = by_process
        self.thread = f"chaos-{number}"
        self.seen: list[Event] = []
        self.runs: list[str] = []
        self.ends = 0
        self.process: asyncio.subprocess.Process | None = None

    async def run(self, over: asyncio.Event) -> None:
        last = False
        while not last:
            last = over.is_set()  # one more, which nobody disturbs
            run = f"{self.thread}-r{len(self.runs)}"
            self.runs.append(run)
            await self._begin(run)
            while self.ends < len(self.runs):
                await (self._view_by_process() if self.by_process else self._view())

    async def _begin(self, run: str) -> None:
        """Ask for the run, until it is sure that it was started."""
        while True:
            asked = run_input(self.thread, run)
            try:
                async with viewing(
                    self.server, "/agui/helper", method="POST", json=asked
                ) as view:
                    if view.status == 200 and await view.next() is not None:
                        return
            except (httpx.HTTPError, OSError):
                pass
            await asyncio.sleep(0.05)

    @property
    def _last(self) -> int:
        return self.seen[-1].id if self.seen else 0

    def _see(self, event: Event) -> bool:
        """Take note of an event; tell whether it ends the run."""
        if event.id:
            self.seen.append(event)
        self.ends += event.type in _TERMINAL
        return event.type in _TERMINAL

    async def _view(self) -> None:
        path = f"/agui/threads/{self.thread}/events?after={self._last}"
        try:
            async with viewing(self.server, path) as view:
                while (event := await view.next()) is not None:
                    if self._see(event):
                        return
        except (httpx.HTTPError, OSError):
            await asyncio.sleep(0.05)

    async def _view_by_process(self) -> None:
        arguments = (str(self.server.port), self.thread, str(self._last))
        process = self.process = await asyncio.create_subprocess_exec(
            *launched(sys.executable, _VIEWER, *arguments),
            env=environment({}),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                if not line.endswith(b"\n"):
                    break  # it died while it wrote
                offset, _, data = line.partition(b" ")
                if self._see(Event(int(offset or 0), json.loads(data))):
                    return
        finally:
            if process.returncode is None:
                process.kill()
            # Its pipe too is closed then.
            await process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.requirement("R44", "L18")
@pytest.mark.parametrize(
    ("store", "kills", "threads"), [("sqlite", 10, 20), ("dynamodb", 2, 6)]
)
async def test_whatever_dies_each_run_has_one_end_and_viewers_have_the_log(
    make_server: Callable[..., Server], store: str, kills: int, threads: int
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CHAOS_SEED={seed}")
    rng = random.Random(seed)
    agent = AgentProcess()
    settings = {**BACKENDS[store](), **agent_settings(agent.port)}
    server = await make_server(settings).start()
    # Some of the viewers are processes, which are those that are killed.
    people = [Person(server, n, by_process=n < VIEWERS) for n in range(threads)]
    over = asyncio.Event()
    running = [asyncio.create_task(person.run(over)) for person in people]
    deaths = ["agent", "server", "viewer"] * kills
    rng.shuffle(deaths)
    try:
        for death in deaths:
            await progress(people, rng.randrange(40, 200))
            if death == "agent":
                await asyncio.to_thread(agent.kill)
                agent.process = agent.start()
            elif death == "server":
                await server.restart()
            else:
                await kill_one_that_lives(people[:VIEWERS], rng)
        over.set()
        async with asyncio.timeout(120):
            await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        agent.kill()
    logs = []
    for person in people:
        events = [event.fields for event in person.seen]
        assert [event.id for event in person.seen] == list(range(1, len(events) + 1))
        check_runs(person, events)
        logs.append(events)
    with started_judge() as judge:
        assert set(judge.verify(logs)) == {None}
    ends = [each for log in logs for each in log if each["type"] in _TERMINAL]
    lost = [each for each in ends if each.get("code") == "agent_lost"]
    print(f"{len(ends)} runs, {len(lost)} of them lost")
    assert lost and len(lost) < len(ends)


async def kill_one_that_lives(people: list[Person], rng: random.Random) -> None:
    """Kill a viewer's process."""
    async with asyncio.timeout(60):
        while True:
            process = rng.choice(people).process
            if process is not None and process.returncode is None:
                process.send_signal(signal.SIGKILL)
                return
            await asyncio.sleep(0.01)


async def progress(people: list[Person], count: int) -> None:
    """Wait until viewers have had *count* more events, together."""
    until = sum(len(person.seen) for person in people) + count
    async with asyncio.timeout(60):
        while sum(len(person.seen) for person in people) < until:
            await asyncio.sleep(0.01)


def check_runs(person: Person, events: list[dict[str, Any]]) -> None:
    """Each run that was begun is there once, with its own text and one end."""
    runs: list[list[dict[str, Any]]] = []
    for event in events:
        if event["type"] == "RUN_STARTED":
            runs.append([])
        runs[-1].append(event)
    assert [run[0]["runId"] for run in runs] == person.runs
    for run in runs:
        assert [event["type"] in _TERMINAL for event in run].count(True) == 1
        assert run[-1]["type"] in _TERMINAL
        assert {event.get("threadId", person.thread) for event in run} == {
            person.thread
        }
        text = [each["delta"] for each in run if "delta" in each]
        if run[-1]["type"] == "RUN_FINISHED":
            assert text == WORDS
        else:
            assert text == WORDS[: len(text)]

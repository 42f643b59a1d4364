"""Runs of agents under SIGKILL: of the agent, of the server, of viewers, at random.

Whatever dies, each run that was started has exactly one terminal event; the log of each
thread is one that AG-UI's own client accepts; and each viewer, who resumes where it was
cut, has exactly the log, with nothing foreign, doubled or missing.

CHAOS_SEED in the environment replays a run's order of deaths.
"""

from __future__ import annotations

import asyncio
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
from tests.harness.process import environment, launched
from tests.harness.proxies import free_port
from tests.harness.server import Server

KILLS = 10  # of each
THREADS = 20

_PROGRAM = Path(__file__).with_name("slow_agent.py")
_TERMINAL = ("RUN_FINISHED", "RUN_ERROR")


class AgentProcess:
    """The agent's process."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            launched(sys.executable, _PROGRAM, str(self.port)),
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

    Attributes:
        seen: The events of the thread.
        runs: The ids of the runs that it began.
        ends: Their terminal events so far.
    """

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.thread = f"chaos-{number}"
        self.seen: list[Event] = []
        self.runs: list[str] = []
        self.ends = 0
        self.viewing: asyncio.Task[None] | None = None

    async def run(self, over: asyncio.Event) -> None:
        while not over.is_set():
            run = f"{self.thread}-r{len(self.runs)}"
            self.runs.append(run)
            await self._begin(run)
            while self.ends < len(self.runs):
                self.viewing = asyncio.create_task(self._view())
                await asyncio.wait([self.viewing])

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

    async def _view(self) -> None:
        last = self.seen[-1].id if self.seen else 0
        path = f"/agui/threads/{self.thread}/events?after={last}"
        try:
            async with viewing(self.server, path) as view:
                while (event := await view.next()) is not None:
                    if event.id:
                        self.seen.append(event)
                    if event.type in _TERMINAL:
                        self.ends += 1
                        return
        except (httpx.HTTPError, OSError):
            await asyncio.sleep(0.05)

    def cut(self) -> None:
        if self.viewing is not None:
            self.viewing.cancel()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.requirement("R44", "L18")
async def test_whatever_dies_each_run_has_one_end_and_viewers_have_the_log(
    make_server: Callable[..., Server],
) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CHAOS_SEED={seed}")
    rng = random.Random(seed)
    agent = AgentProcess()
    server = await make_server(agent_settings(agent.port)).start()
    people = [Person(server, number) for number in range(THREADS)]
    over = asyncio.Event()
    running = [asyncio.create_task(person.run(over)) for person in people]
    deaths = ["agent", "server", "viewer"] * KILLS
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
                rng.choice(people).cut()
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

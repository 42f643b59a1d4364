"""Relay: run the agents of the settings, and append what they send to their threads.

A run is started by a request and does not depend on it: the request of whoever started
it is one viewer among others. Nothing but the agent, a cancel, or the end of this
process ends a run.

Invariants, on the event loop:

Y1 Each started run has one task here until it has ended, and each such task gives its
   run a terminal event: the agent's, or ``agent_lost``, or that of the refusal.
Y2 The request to the agent is closed when the run has ended, whoever ended it.
Y3 Events are appended in the order in which they came; while the store takes no more,
   the agent is not read.

Interleavings that could break them, each a test in tests/e2e/test_relay.py: a
cancel while the agent is silent and while it streams; an agent that goes on after its
terminal event, or after its event was refused; a shutdown while it streams
(tests/e2e/test_thread_events.py).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import aclosing
from typing import NamedTuple

import structlog

from service.agents.errors import AgentsMissing, Refused, RunExists
from service.agents.models import load_models
from service.agents.run_input import RunInput
from service.agents.writer import RunWriter
from service.core.errors import describe
from service.core.model import RawJson
from service.http.agui.agent_client import RUNS, AgentClient, AgentLost
from service.runtime import Runtime
from service.settings import AgentSettings

__all__ = ["Relay"]

log = structlog.get_logger("steadwire")

_LAST_BYTES = 1.0  # s that the agent's answer has after the terminal event


class Started(NamedTuple):
    """A run that is there now, whoever started it.

    Attributes:
        after: The offset before its RUN_STARTED.
        live: Whether it has no terminal event yet.
        repeated: It was started before.
    """

    after: int
    live: bool
    repeated: bool


class Relay:
    """The agents of the settings, and their runs in this process.

    Args:
        runtime: The running service.
        agents: The agents: those of the settings, and the page's.

    Attributes:
        outcomes: Runs that have ended, by what became of them: ``finished`` by the
            agent, ``cancelled``, ``lost``, or ``refused`` for an event that the
            protocol does not allow.

    Raises:
        SettingsError: The authorities of TLS cannot be read.
    """

    def __init__(self, runtime: Runtime, agents: Iterable[AgentSettings]) -> None:
        self.outcomes: Counter[str] = Counter()
        self._threads = runtime.threads
        tls = runtime.settings.tls
        self._agents = {agent.name: AgentClient(agent, tls) for agent in agents}
        self._running: dict[RunWriter, tuple[str, asyncio.Task[None]]] = {}
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._running)

    def knows(self, agent: str) -> bool:
        """Tell whether the settings have an agent of this name."""
        return agent in self._agents

    async def prepare(self) -> None:
        """Import what the first run needs, so that it does not wait for that."""
        try:
            await load_models()
        except AgentsMissing as missing:
            log.error("no agent can be run", reason=str(missing))

    async def start(self, agent: str, asked: RunInput, info: RawJson) -> Started:
        """Start a run, unless it was started before.

        Args:
            agent: The agent's name.
            asked: What it is to do.
            info: Who asks, as JSON of a `ClientInfo`.

        Raises:
            Refused: As `Threads.start`; ``too_many_runs`` for an agent that has `RUNS`.
            ReplyError: As `Threads.start`.
            StoreError: The store has a fault.
            AgentsMissing: As `Threads.start`.
        """
        if self._counts[agent] >= RUNS:
            raise Refused("too_many_runs", f"{RUNS} runs of the agent are live")
        self._counts[agent] += 1
        try:
            writer = await self._threads.start(
                asked.thread,
                asked.run,
                writes="relay",
                agent=agent,
                messages=asked.messages,
                info=info,
            )
        except RunExists as found:
            self._counts[agent] -= 1
            return Started(found.offset - 1, found.live, True)
        except BaseException:
            self._counts[agent] -= 1
            raise
        task = asyncio.ensure_future(self._run(agent, writer, asked.text))
        self._running[writer] = agent, task
        return Started(writer.start - 1, True, False)

    async def close(self) -> None:
        """End the runs as lost, and close the connections to the agents."""
        running = dict(self._running)
        for writer in running:
            writer.lose()
        await asyncio.gather(*[task for _, task in running.values()])
        for client in self._agents.values():
            await client.close()

    async def _run(self, agent: str, writer: RunWriter, text: str) -> None:
        reading = asyncio.ensure_future(self._read(agent, writer, text))
        try:
            await writer.ended.wait()
            if not writer.cancelled.is_set():
                # If the answer ends by itself, its connection serves the next run.
                await asyncio.wait([reading], timeout=_LAST_BYTES)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self._running.pop(writer, None)
            self._counts[agent] -= 1
            outcome = "lost"
            if writer.cancelled.is_set():
                outcome = "cancelled"
            elif not reading.cancelled() and reading.exception() is None:
                outcome = reading.result()
            self.outcomes[outcome] += 1

    async def _read(self, agent: str, writer: RunWriter, text: str) -> str:
        """Append what the agent sends; return the outcome."""
        reason = "its answer ended before the run"
        try:
            async with aclosing(self._agents[agent].run(text)) as events:
                async for data in events:
                    await writer.put(data)
        except Refused as refusal:
            if writer.over:
                return "finished"  # by the agent, which goes on nevertheless, or others
            log.warning(
                "an agent's event was refused",
                agent=agent,
                code=refusal.code,
                reason=refusal.reason,
            )
            writer.fail(
                f"the agent's event was refused: {refusal.reason}", refusal.code
            )
            return "refused"
        except AgentLost as lost:
            reason = str(lost)
        except Exception as error:
            log.error("the relay of a run failed", agent=agent, **describe(error))
            writer.lose()
            return "lost"
        if writer.lose():
            log.warning("an agent was lost", agent=agent, reason=reason)
            return "lost"
        return "finished"

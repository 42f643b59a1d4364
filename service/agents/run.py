"""Run: an agent in Python, written as the body of an ``async with``.

    async with Run(await application.threads(), "thread-1", "run-1") as run:
        await run.say("The answer is ", "42.")

The run begins with the block and ends with it, whatever happens in it:

| the block | the terminal event |
|---|---|
| ends | RUN_FINISHED, unless the block sent one; what was open is closed |
| raises an exception | RUN_ERROR ``agent_failed``; the exception goes on |
| is cancelled from outside | RUN_FINISHED, cancelled; the cancellation goes on |
| is cancelled with the run, by somebody | RUN_FINISHED, cancelled; no exception |
| while the process ends | RUN_ERROR ``agent_lost``, by this process or the next |

A start with the id of a run that was started before raises `RunExists`; nothing runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

from service.agents.errors import Refused
from service.agents.events import dump
from service.agents.threads import Threads
from service.agents.writer import RunWriter

__all__ = ["Run"]


class _Model(Protocol):
    """An event of the package ``ag-ui-protocol``."""

    def model_dump_json(
        self, *, by_alias: bool = ..., exclude_none: bool = ...
    ) -> str: ...


class Run:
    """A run of this process.

    Args:
        threads: `Application.threads`.
        thread: The thread's id.
        run: The run's id.
        messages: Those that the run answers; the new ones are stored with its start.
    """

    def __init__(
        self,
        threads: Threads,
        thread: str,
        run: str,
        *,
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._threads = threads
        self._thread = thread
        self._run = run
        self._messages = messages
        self._writer: RunWriter | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stopped = False
        self._said = 0

    async def __aenter__(self) -> Run:
        self._writer = await self._threads.start(
            self._thread, self._run, writes="python", messages=self._messages
        )
        task = asyncio.current_task()
        assert task is not None, "a run belongs to a task"
        self._watch = asyncio.create_task(self._cancelled(self._writer, task))
        return self

    async def _cancelled(self, writer: RunWriter, task: asyncio.Task[Any]) -> None:
        await writer.cancelled.wait()
        self._stopped = True
        task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        assert self._writer is not None and self._watch is not None
        writer = self._writer
        self._watch.cancel()
        if error is None:
            writer.finish()
        elif isinstance(error, asyncio.CancelledError):
            writer.cancel()
        elif not isinstance(error, Refused) or error.code not in _OVER:
            writer.fail(type(error).__name__, "agent_failed")
        await asyncio.shield(writer.ended.wait())
        if not self._stopped:
            return False
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return isinstance(error, asyncio.CancelledError | Refused)

    @property
    def writer(self) -> RunWriter:
        """The run's writer, inside of the block."""
        assert self._writer is not None, "the run has not begun"
        return self._writer

    async def send(self, event: str | bytes | Mapping[str, Any] | _Model) -> None:
        """Send an event: JSON, a mapping, or a model of ``ag-ui-protocol``.

        It waits for space, not for the commit; the end of the block waits for all.

        Raises:
            Refused: The event is not stored; the run goes on unless it is over.
        """
        if isinstance(event, str | bytes):
            text: str | bytes = event
        elif isinstance(event, Mapping):
            text = dump(dict(event)).text
        else:
            text = event.model_dump_json(by_alias=True, exclude_none=True)
        await self.writer.put(text)

    async def say(self, *deltas: str, message: str = "") -> str:
        """Send a whole message of the agent; return its id.

        Raises:
            Refused: As `send`.
        """
        self._said += 1
        name = message or f"{self._run}-{self._said}"
        await self.send(
            {"type": "TEXT_MESSAGE_START", "messageId": name, "role": "assistant"}
        )
        for delta in deltas:
            await self.send(
                {"type": "TEXT_MESSAGE_CONTENT", "messageId": name, "delta": delta}
            )
        await self.send({"type": "TEXT_MESSAGE_END", "messageId": name})
        return name


_OVER = frozenset({"run_over", "run_lost"})

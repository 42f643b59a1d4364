"""Push an AG-UI run into Steadwire: a helper for agents, in one file.

    async with Push(url, key, thread="trip", run="r1") as run:
        async for event in agent(...):
            await run.send(event)  # a dict, RUN_STARTED first

Needs Python 3.11 and httpx. Copy it beside your agent.

Events are numbered from 1, and go out as NDJSON in long requests. What the server has
not confirmed is kept, and sent again after a cut: nothing is lost, and nothing comes
twice. At most `KEPT` events are kept; `send` waits then. While the agent is silent an
empty line each `ALIVE` s keeps its lease. When somebody cancels the run, or it has
ended otherwise, `send` raises `Ended`. Leaving the context waits until everything is
stored; an exception in it ends the run with RUN_ERROR, a cancellation as cancelled.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

__all__ = ["Ended", "Push", "Refused", "Unreachable"]

KEPT = 1000  # events that the server has not confirmed
ALIVE = 4.0  # seconds between signs of life; the server's lease is 30 s by default
LONGEST_PAUSE = 5.0  # seconds between two attempts, at random below

_LOOK = 25  # seconds that a question about the run waits


class Ended(Exception):
    """The run is over.

    Attributes:
        outcome: ``cancelled``, ``finished``, or the code of a RUN_ERROR.
    """

    def __init__(self, outcome: str) -> None:
        super().__init__(f"the run is over: {outcome}")
        self.outcome = outcome


class Refused(Exception):
    """The server does not take an event; another attempt would not change that.

    Attributes:
        status: Of the answer.
        code: The server's word for it, such as ``wrong_order``.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message or f"status {status}")
        self.status = status
        self.code = code


class Unreachable(Exception):
    """The server could not be reached in as many attempts as there are."""


class Push:
    """One run that this process writes.

    Args:
        url: Steadwire's address, or that of its API.
        key: A key of the server API that may publish to threads.
        thread: The thread's id.
        run: The run's id; an agent that begins again with it goes on where it was.
        attempts: Failures one after another before it gives up.
        client: In place of one of its own, which ignores the environment's proxies.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        thread: str,
        run: str,
        attempts: int = 30,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        path = f"/api/runs/{quote(thread, safe='')}/{quote(run, safe='')}"
        self._url = url.rstrip("/") + path
        self._headers = {"X-API-Key": key}
        self._names = {"threadId": thread, "runId": run}
        self._attempts = attempts
        self._own = client is None
        timeout = httpx.Timeout(30.0, read=60.0)
        self._client = client or httpx.AsyncClient(trust_env=False, timeout=timeout)
        self._kept: deque[bytes] = deque()
        self._first = 1  # the number of the first that is kept
        self._sent = 0  # of the request that is open: the next number to go out
        self._closing = False
        self._failure: Exception | None = None
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin; nothing is sent before the first event."""
        self._tasks = [
            asyncio.create_task(self._guarded(work))
            for work in (self._write, self._watch)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait until all is stored."""
        try:
            if error is not None and not isinstance(error, Ended):
                await self._put(self._end_of(error))
            async with self._changed:
                self._closing = True
                self._changed.notify_all()
            await self._tasks[0]
        except Ended:
            pass
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._own:
                await self._client.aclose()
        if error is None and self._failure is not None:
            if isinstance(self._failure, Ended) and self._failure.outcome == "finished":
                return
            raise self._failure

    async def send(self, event: Mapping[str, Any]) -> None:
        """Send an event; return when there is room for the next.

        Raises:
            Ended: Somebody has cancelled the run, or it is over.
            Refused: The server does not take what was sent.
            Unreachable: The server could not be reached.
        """
        await self._put(event)

    async def _put(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._failure is not None or len(self._kept) < KEPT
            )
            if self._failure is not None:
                raise self._failure
            self._kept.append(line.encode() + b"\n")
            self._changed.notify_all()

    def _end_of(self, error: BaseException) -> dict[str, Any]:
        if isinstance(error, asyncio.CancelledError):
            outcome = {"type": "cancelled"}
            return {"type": "RUN_FINISHED", **self._names, "outcome": outcome}
        # Its text may hold what nobody is to see.
        words = f"the agent failed: {type(error).__name__}"
        return {"type": "RUN_ERROR", "message": words, "code": "agent_failed"}

    async def _guarded(self, work: Any) -> None:
        try:
            await work()
        except (Ended, Refused, Unreachable) as failure:
            async with self._changed:
                self._failure = self._failure or failure
                self._changed.notify_all()

    async def _write(self) -> None:
        """Send what is kept, one request after another, until all is stored."""
        failures = 0
        while True:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._kept or self._closing or self._failure is not None
                )
                if self._failure is not None or not self._kept:
                    return
            before = self._first
            try:
                answer = await self._client.post(
                    f"{self._url}/events?from={self._first}",
                    headers={**self._headers, "Content-Type": "application/x-ndjson"},
                    content=self._body(),
                )
            except httpx.TransportError as cut:
                failures = 0 if self._first > before else failures + 1
                await self._pause(failures, cut)
                continue
            found = _json(answer)
            await self._confirm(found.get("next"))
            if answer.is_success:
                failures = 0
                _check(found)
                continue
            error = found.get("error") or {}
            temporary = error.get("temporary") or answer.status_code in (502, 503, 504)
            if found.get("outcome"):
                _check(found)
            if error.get("code") == "gap" and self._first > before:
                continue
            if not temporary:
                code, words = error.get("code", ""), error.get("message", "")
                raise Refused(answer.status_code, code, words)
            failures += 1
            await self._pause(failures, Unreachable(f"status {answer.status_code}"))

    async def _body(self) -> AsyncIterator[bytes]:
        """Yield what is kept, and what comes; end early, so that it is confirmed."""
        self._sent = self._first
        while True:
            async with self._changed:
                try:
                    async with asyncio.timeout(ALIVE):
                        await self._changed.wait_for(self._is_due)
                except TimeoutError:
                    pass
                at = self._sent - self._first
                line = self._kept[at] if at < len(self._kept) else b""
                over = self._closing or self._failure is not None
            if line:
                self._sent += 1
                yield line
            elif over or at >= KEPT // 2:
                return
            else:
                yield b"\n"

    def _is_due(self) -> bool:
        at = self._sent - self._first
        full = at >= KEPT // 2
        return bool(
            at < len(self._kept) or full or self._closing or self._failure is not None
        )

    async def _confirm(self, following: Any) -> None:
        if not isinstance(following, int):
            return
        async with self._changed:
            while self._kept and self._first < following:
                self._kept.popleft()
                self._first += 1
            self._changed.notify_all()

    async def _watch(self) -> None:
        """Notice that the run is over while the agent writes or is silent."""
        failures = 0
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._sent > 1)
            try:
                answer = await self._client.get(
                    f"{self._url}/control?wait={_LOOK}", headers=self._headers
                )
            except httpx.TransportError:
                failures += 1
                await asyncio.sleep(_delay(failures))
                continue
            failures = 0 if answer.is_success else failures + 1
            found = _json(answer)
            if answer.is_success and found.get("outcome"):
                await self._confirm(found.get("next"))
                _check(found)
            if not found.get("live"):
                await asyncio.sleep(_delay(failures or 1))

    async def _pause(self, failures: int, cause: Exception) -> None:
        if failures >= self._attempts:
            raise Unreachable(f"no answer in {failures} attempts") from cause
        await asyncio.sleep(_delay(failures))


def _delay(failures: int) -> float:
    return random.random() * min(LONGEST_PAUSE, 0.25 * 2.0 ** min(failures, 10))


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _check(found: Mapping[str, Any]) -> None:
    """Raise `Ended` if the run is over."""
    if found.get("outcome"):
        raise Ended(str(found["outcome"]))

"""The one writer of a live run: order, commits, lease, and exactly one terminal event.

Each event is one append, with a *version*: the offset at which the run began, and the
event's number in the run. The store skips a draft whose version is not above the
stream's, in the same transaction that it checks it in. A terminal event has the highest
version that the run can have. So whoever writes a terminal event, this process or
another that found the run orphaned, shuts the run for all others: a process that was
only slow, and wakes up later, stores nothing more, neither a delta nor a second
terminal event. Two processes that start a run at once give theirs the same first
version, or one of them an older; one is skipped.

Invariants, all on the event loop:

W1 Events are stored in the order in which they were admitted, without a hole. After a
   fault of the store, what is in the log decides what is repeated (`_settle`); where
   the log has a later event and not an earlier one, the run is lost.
W2 A run has one terminal event (the versions), and no event after it.
W3 What was refused, or was not committed, is in no snapshot: the fold takes in what is
   committed, while `order`, which checks, is ahead of it.
W4 At most `IN_FLIGHT` events of the run are not committed; `put` waits.

Interleavings that could break them, each a test in tests/agents/test_writer.py: an
append fails and the one after it does not (W1); the outcome of an append is unknown,
and it was stored, or was not (W1); the lease ends, or somebody cancels, while the
terminal event of the agent is not committed (W2); another process ends the run while
events are on their way (W2); a delta is admitted after a cancel (W2).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from service.agents.errors import Refused
from service.agents.events import AgentEvent, dump, parse_event
from service.agents.fold import RUN_SIZE
from service.agents.order import TERMINAL
from service.agents.thread import Thread
from service.core.clock import sleep
from service.core.errors import StoreError, StoreUnavailable
from service.core.model import Appended, Draft
from service.core.ports import Clock, Timer

__all__ = ["AGENT_LOST", "LAST", "RunWriter", "version_of"]

IN_FLIGHT = 64  # events that are not committed (count)
LAST = 2**24 - 1
"""The number of a run's terminal event; the others have lower ones."""
AGENT_LOST = ("the agent is gone", "agent_lost")
"""Message and code of the RUN_ERROR of a run whose agent was not heard of in time."""

_URGENT = frozenset({"RUN_STARTED", "RUN_FINISHED", "RUN_ERROR"})
_SETTLE = (0.1, 0.3, 1.0, 3.0, 5.0)  # s between looks at the log after a fault


def version_of(start: int, number: int) -> int:
    """Return the version of an event of the run that began at offset *start*."""
    return (start << 24) | number


class _Item:
    """An event on its way into the store."""

    __slots__ = ("event", "future", "number", "outcome")

    def __init__(
        self, event: AgentEvent, number: int, future: asyncio.Future[int]
    ) -> None:
        self.event = event
        self.number = number
        self.future = future
        self.outcome: Appended | StoreError | None = None


class RunWriter:
    """The writer of one live run; `Threads.start` makes it.

    Args:
        thread: The thread.
        run: The run's id.
        lease: Seconds of silence after which the agent is lost; 0 for no lease.
        clock: Times the lease.
        spawn: Runs a coroutine in the background.
        append: Hands a draft to the store.
        event_size: Bytes of an event at most.
        pushed: Whether its agent pushes, and may come back to any process.
        finished: Called once when nothing more will be stored: with True after a
            terminal event, with False when the run is lost and somebody has to see
            that it has one.

    Attributes:
        cancelled: Set when somebody cancelled the run; it has ended then.
        ended: Set when the run has a terminal event in the store, or is lost.
        offset: The offset of the newest event that is committed.
        start: The offset of the RUN_STARTED.
        heard_at: When the agent was heard of, on the clock.
        told_at: When the viewers were told something last.
        pushed: The same.
        stepped_aside: Whether another process goes on with the run.
    """

    def __init__(
        self,
        thread: Thread,
        run: str,
        *,
        lease: float,
        clock: Clock,
        spawn: Callable[[Awaitable[None]], object],
        append: Callable[[Draft, Callable[[Appended | StoreError], None]], None],
        event_size: int,
        pushed: bool,
        finished: Callable[[RunWriter, bool], None],
    ) -> None:
        self.thread = thread
        self.run = run
        self.start = thread.fold.runs[run].start
        self.offset = thread.fold.offset
        self.cancelled = asyncio.Event()
        self.pushed = pushed
        self.stepped_aside = False
        self.ended = asyncio.Event()
        self.heard_at = self.told_at = clock.now()
        self._order = thread.fold.order.copy()
        self._lease = lease
        self._clock = clock
        self._spawn = spawn
        self._append = append
        self._event_size = event_size
        self._finished = finished
        self._number = self.offset - self.start  # of the newest event
        self._items: deque[_Item] = deque()
        self._in_flight = 0
        self._troubled = False
        self._over = False  # a terminal event was admitted
        self._lost = False
        self._moved = asyncio.Event()
        self._timer: Timer | None = None
        self._set_lease()

    @property
    def over(self) -> bool:
        """Whether no more events are taken."""
        return self._over or self._lost

    # The agent's side.

    async def put(self, text: str | bytes) -> asyncio.Future[int]:
        """Take an event of the agent; wait only for space.

        A RUN_STARTED of this very run is the one that is stored already.

        Returns:
            Its offset, once it is committed. That raises `StoreError` (transient) or
            `Refused` with ``run_lost``.

        Raises:
            Refused: The event is not stored; the run goes on.
            AgentsMissing: The protocol's package is not installed.
        """
        event = parse_event(text, self._event_size)
        self.touch()
        while not self.over:
            if not self.thread.has_room(self._in_flight + 8):
                await self.thread.kept()
            elif self._troubled or self._in_flight >= self._window:
                self._moved.clear()
                await self._moved.wait()
            else:
                break
        return self._admit(event)

    async def append(self, text: str | bytes) -> int:
        """Take an event of the agent, and return its offset once it is committed.

        Raises:
            Refused: As `put`.
            StoreError: The store has a fault; the event may be stored nevertheless.
            AgentsMissing: As `put`.
        """
        return await (await self.put(text))

    def touch(self) -> None:
        """Take note that the agent lives."""
        self.heard_at = self._clock.now()

    # Ends.

    def cancel(self) -> bool:
        """End the run as cancelled, with ends for all that it has open.

        Returns:
            Whether it did; False for a run that is over.
        """
        if self.over:
            return False
        self.cancelled.set()
        self._close_open()
        self._end(
            {
                "type": "RUN_FINISHED",
                "threadId": self.thread.name,
                "runId": self.run,
                "outcome": {"type": "cancelled"},
            }
        )
        return True

    def finish(self, result: Any = None) -> bool:
        """End the run well, with ends for all that it has open.

        Returns:
            Whether it did; False for a run that is over.
        """
        if self.over:
            return False
        self._close_open()
        fields = {
            "type": "RUN_FINISHED",
            "threadId": self.thread.name,
            "runId": self.run,
        }
        self._end(fields if result is None else {**fields, "result": result})
        return True

    def fail(self, message: str, code: str) -> bool:
        """End the run with a RUN_ERROR.

        Returns:
            Whether it did; False for a run that is over.
        """
        if self.over:
            return False
        self._end({"type": "RUN_ERROR", "message": message, "code": code})
        return True

    def step_aside(self) -> None:
        """Write no more: the agent has come to another process, which goes on."""
        if not self.over:
            self.stepped_aside = True
            self._lose()

    def leave(self) -> None:
        """Take no more events: this process ends, and the agent goes on at another.

        What is on its way is waited for (`ended`).
        """
        if not self.over:
            self.stepped_aside = self._lost = True
            self._stop_lease()
            self._moved.set()
            if not self._items:
                self._finish(ended=False)

    def lose(self) -> bool:
        """End the run because its agent is gone: a RUN_ERROR ``agent_lost``."""
        return self.fail(*AGENT_LOST)

    # Admission.

    @property
    def _window(self) -> int:
        return max(1, min(IN_FLIGHT, self.thread.history.size // 8))

    def _admit(self, event: AgentEvent) -> asyncio.Future[int]:
        if self._lost:
            raise Refused("run_lost", "the run was ended by a fault")
        if self._over:
            raise Refused("run_over", "the run has ended")
        fields = event.fields
        if fields.get("threadId", self.thread.name) != self.thread.name:
            raise Refused("wrong_order", f"{event.type}: threadId is another thread's")
        if event.type == "RUN_STARTED" and fields["runId"] == self.run:
            future = asyncio.get_running_loop().create_future()
            future.set_result(self.start)
            return future
        if self.thread.fold.run_size > RUN_SIZE and event.type not in TERMINAL:
            raise Refused("too_large", f"the run takes more than {RUN_SIZE} bytes")
        if self._number >= LAST - 1024 and event.type not in TERMINAL:
            raise Refused("too_large", f"the run has more than {LAST} events")
        self._order.admit(event)
        return self._submit(event)

    def _end(self, fields: dict[str, Any]) -> None:
        event = dump(fields)
        self._order.admit(event)
        self._submit(event)

    def _close_open(self) -> None:
        for event in self._order.ends():
            self._order.admit(event)
            self._submit(event)

    # Commits.

    def _submit(self, event: AgentEvent) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_seen)
        if event.type in TERMINAL:
            self._over = True
            self._stop_lease()
        self._number += 1
        number = LAST if event.type in TERMINAL else self._number
        item = _Item(event, number, future)
        self._items.append(item)
        if not self._troubled:
            self._send(item)
        return future

    def _send(self, item: _Item) -> None:
        event = item.event
        # The same at each attempt: a late first one is skipped, or the repeat is.
        version = version_of(self.start, item.number)
        draft = Draft(
            event.text,
            version=version,
            urgent=event.type in _URGENT,
        )
        item.outcome = None
        self._in_flight += 1
        self._append(draft, lambda outcome: self._done(item, outcome))

    def _done(self, item: _Item, outcome: Appended | StoreError) -> None:
        self._in_flight -= 1
        item.outcome = outcome
        good = not isinstance(outcome, StoreError) and outcome.fresh
        if good and not self._troubled and self._items and self._items[0] is item:
            assert not isinstance(outcome, StoreError)
            self._confirm(outcome.position.offset)
            self._moved.set()
        else:
            self._troubled = True
            if not self._in_flight:
                self._spawn(self._settle())

    def _confirm(self, offset: int, *, taken: bool = False) -> None:
        """Take note that the oldest event on its way is in the log."""
        item = self._items.popleft()
        if not taken:
            self.thread.committed(offset, item.event)
        self.offset, self.told_at = offset, self._clock.now()
        if not item.future.done():
            item.future.set_result(offset)
        terminal = item.event.type in TERMINAL
        self.thread.keep(now=terminal)
        if terminal:
            self._finish(ended=True)
        elif self._lost and not self._items:
            self._finish(ended=False)

    async def _settle(self) -> None:
        """After a fault, find out what is in the log, and repeat what is not."""
        for delay in (0.0, *_SETTLE):
            if delay:
                await sleep(self._clock, delay)
            try:
                new = await self.thread.refresh()
            except StoreError:
                continue
            for offset, event in new:
                if self.ended.is_set():
                    return None
                if not self._items or event is None:
                    return self._lose()
                if self._items[0].event.text != event.text:
                    return self._lose()  # a hole, or another process was here
                self._confirm(offset, taken=True)
            if self.ended.is_set():
                return None
            skipped = any(
                isinstance(item.outcome, Appended) and not item.outcome.fresh
                for item in self._items
            )
            if skipped:
                return self._lose()
            busy = any(isinstance(item.outcome, StoreError) for item in self._items)
            if busy and not delay:
                continue  # give the store the time of one delay
            self._troubled = False
            for item in tuple(self._items):
                self._send(item)
            self._moved.set()
            return None
        return self._lose()

    def _lose(self) -> None:
        """Give the run up: another process has ended it, or the store has a fault."""
        self._lost = True
        while self._items:
            item = self._items.popleft()
            if item.future.done():
                continue
            if isinstance(item.outcome, StoreError):
                item.future.set_exception(StoreUnavailable("the event is not stored"))
            else:
                item.future.set_exception(
                    Refused("run_lost", "the run was ended elsewhere")
                )
        self._finish(ended=False)

    def _finish(self, *, ended: bool) -> None:
        if self.ended.is_set():
            return
        self._stop_lease()
        self.ended.set()
        self._moved.set()
        self._finished(self, ended)

    # The lease.

    def _set_lease(self) -> None:
        if self._lease > 0:
            when = self.heard_at + self._lease
            self._timer = self._clock.call_at(when, self._lease_over)

    def _stop_lease(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _lease_over(self) -> None:
        self._timer = None
        if self._items:
            self.heard_at = self._clock.now()  # it is the store that is slow
        if self._clock.now() < self.heard_at + self._lease:
            self._set_lease()
        else:
            self.lose()


def _seen(future: asyncio.Future[int]) -> None:
    """Let an outcome that nobody waits for be."""
    if not future.cancelled():
        future.exception()

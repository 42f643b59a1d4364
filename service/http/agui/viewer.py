"""Viewer over HTTP: the body of a streamed answer, which shows a thread's events.

Falcon takes a piece of the body whenever the one before is written, so nothing waits
here: what the viewer has not taken is in the log, and read from there when it is
(`service.agents.feed`). That is a socket's bound on the outbox, without an outbox.

Invariants, on the event loop:

V1 Each event after the first piece is handed over once, in order, with its offset as
   its id; the first piece's id is the offset of the last event in it.
V2 While a run lives, no more than `KEEP_ALIVE` passes without a byte, else `IDLE`.
V3 A piece of which the peer takes less than `LEAST_RATE` during the write timeout cuts
   the answer off. Any other end is after a whole event: of the run, of the token, of
   the process, or because the history has passed the viewer by.
V4 Whatever ends it, `close` is called once by Falcon, and frees everything.

Interleavings that could break them, each a test in tests/http/agui/test_viewer.py: an
end while it waits, while it writes, and in the turn in which events come; a cut by the
deadline in the turn in which the write ends; an event in the turn of a keep-alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from service.agents.errors import Gone
from service.agents.events import read_event
from service.agents.feed import Follower
from service.agents.order import TERMINAL
from service.agents.threads import KEEP_ALIVE
from service.connections.outbox import LEAST_RATE
from service.core.errors import StoreError
from service.core.event_stream import COMMENT, event_bytes
from service.core.model import Publication
from service.core.ports import Clock, Timer

__all__ = ["BEGIN", "Viewer"]

BEGIN = b"retry: 1000\n\n"
"""The begin of each stream: milliseconds after which a client shall come back."""

IDLE = 15.0
"""Seconds between signs of life in a thread without a live run: below the idle limits
of proxies, which are 60 s as a rule."""

Progress = Callable[[], tuple[int, int]]


class Viewer:
    """The body of one answer.

    Args:
        first: The first piece.
        follower: Reads what follows it.
        clock: Times signs of life and writes.
        live: Whether a run lives at the follower's position.
        once: End with the first terminal event.
        write_timeout: Seconds after which a slow write is looked at.
        progress: As `ports.Socket.progress`; None where the server cannot tell.
        closed: Called once, when the answer has ended.

    Attributes:
        outcome: Why it ended: ``gone`` (the peer), ``over``, ``told``, ``slow``,
            ``passed`` (by the history) or ``store``; "" while it goes on.
    """

    def __init__(
        self,
        first: bytes,
        follower: Follower,
        clock: Clock,
        *,
        live: bool,
        once: bool,
        write_timeout: float,
        progress: Progress | None,
        closed: Callable[[Viewer], None],
    ) -> None:
        self.outcome = ""
        self._first = first
        self._follower = follower
        self._clock = clock
        self._live = live
        self._once = once
        self._write_timeout = write_timeout
        self._progress = progress
        self._closed: Callable[[Viewer], None] | None = closed
        self._waits = False  # for events; else it is being written
        self._task: asyncio.Task[Any] | None = None
        self._timer: Timer | None = None
        self._taken = 0

    async def prepare(self) -> None:
        """Put what is there already into the first piece.

        Raises:
            Gone: The history does not have the event after the position.
            StoreError: The read failed; the fault is transient.
        """
        self._first += self._written(await self._follower.next(0.0))

    def __aiter__(self) -> Viewer:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece, once there is one."""
        self._stop_timer()
        self._task = asyncio.current_task()
        piece, self._first = self._first, b""
        if not piece:
            piece = await self._next()
        if not piece:
            raise StopAsyncIteration
        self._start_timer()
        return piece

    def end(self, outcome: str = "told") -> None:
        """End the answer after the piece that is being written; safe to call twice."""
        self.outcome = self.outcome or outcome
        if self._waits and self._task is not None:
            self._waits = False
            self._task.cancel()

    async def close(self) -> None:
        """Free everything: the answer has ended."""
        self._stop_timer()
        self._task = None
        self.outcome = self.outcome or "gone"
        self._follower.close()
        closed, self._closed = self._closed, None
        if closed is not None:
            closed(self)

    async def _next(self) -> bytes:
        if self.outcome:
            return b""
        self._waits = True
        try:
            found = await self._follower.next(KEEP_ALIVE if self._live else IDLE)
        except asyncio.CancelledError:
            if not self.outcome or self._task is None:
                raise
            self._task.uncancel()  # `end` has cancelled it
            return b""
        except Gone:
            self.outcome = "passed"
            return b""
        except StoreError:
            self.outcome = "store"  # the client comes back, and meets the fault there
            return b""
        finally:
            self._waits = False
        return self._written(found) if found else COMMENT

    def _written(self, found: list[Publication]) -> bytes:
        pieces = []
        for publication in found:
            offset, data = publication.offset, publication.data
            pieces.append(event_bytes(data, str(offset)))
            if '"RUN_' not in data:
                continue
            event = read_event(data)
            if event is not None and event.type in TERMINAL:
                self._live = False
                if self._once:
                    self.outcome = "over"
                    break
            elif event is not None and event.type == "RUN_STARTED":
                self._live = True
        return b"".join(pieces)

    # The write deadline.

    def _start_timer(self) -> None:
        if self._progress is not None:
            self._taken = self._progress()[1]
        when = self._clock.now() + self._write_timeout
        self._timer = self._clock.call_at(when, self._late)

    def _late(self) -> None:
        self._timer = None
        taken = 0 if self._progress is None else self._progress()[1] - self._taken
        if taken >= LEAST_RATE * self._write_timeout:
            self._start_timer()
        elif self._task is not None:
            self.outcome = "slow"
            self._task.cancel()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

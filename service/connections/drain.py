"""Drain: take no more clients, and send those that are here away over a time.

    serving ──begin──► draining ──the last connection is over──► drained

From `begin` on the server is not ready, handshakes, connects and subscribes are refused
with what SDKs retry, and everything else goes on: publications are taken and delivered
until the process ends. Clients are sent away with 3001 in random order, evenly over the
drain time, so that those who come back elsewhere do not come all at once.

Invariants:

* A drain begins once and does not end: `begin` again changes nothing.
* At any time the share of clients that have been told is that of the drain time which
  has passed, `PORTION` a step at most. So nobody waits for anybody else: a client with
  a command under way is told in its turn, and only its close waits.
* A client that is told is read no more. Its commands are answered first, then it is
  closed. Those whose answer is late are closed `ANSWERS` after the last was told.
* `finish` returns when no connection is left, or `CLOSING` after the last close: a peer
  that does not take its close frame keeps nothing open here.
* Streamed answers are told in the same order; theirs ends at once, and the client
  resumes it elsewhere.
* Nobody gets a slot after `begin`: those without one are closed at once, and one that
  the gate let in just before is refused when it asks (`ClientConnection`).

Interleavings that could break them, each a test in tests/connections/test_drain.py: the
drain begins during a connect, between the handshake and the connect, while a hook or
the store is asked, during a recovery in portions, and while a slow client is written
to; it begins twice; it is hurried; the store is locked meanwhile; a client leaves by
itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import structlog

from service.connections.registry import Connection, Registry
from service.connections.streams import Stream, Streams
from service.core.errors import SHUTDOWN
from service.core.health import Fault
from service.core.ports import Clock

__all__ = ["PORTION", "STEP", "Drain"]

log = structlog.get_logger("steadwire")

STEP = 0.02
"""Seconds between two steps."""

PORTION = 200
"""Clients that are told in one step (count)."""

ANSWERS = 3.0
"""Seconds that the last command has for its answer: SDKs wait for 5 s."""

CLOSING = 2.0
"""Seconds that `finish` waits for clients to take their close frames."""


class Drain:
    """The drain of one process.

    Args:
        registry: The connections.
        clock: Spreads the closes.
        rng: Gives their order.
        time: Seconds over which clients are sent away; 0 for all at once.
        refuse: Called when it begins: no handshake is to be accepted any more.
        streams: The streamed answers; None for none.

    Attributes:
        begun: Whether it has begun.
    """

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        rng: Random,
        *,
        time: float,
        refuse: Callable[[], None] = lambda: None,
        streams: Streams | None = None,
    ) -> None:
        self.begun = False
        self._registry = registry
        self._clock = clock
        self._rng = rng
        self._time = time
        self._refuse = refuse
        self._streams = streams
        self._left: list[Connection | Stream] = []  # to be told, the next one last
        self._count = 0  # of clients when it began
        self._begun_at = 0.0
        self._told_at: float | None = None  # when the last was told
        self._closed_at: float | None = None  # when the last was closed
        self._over = asyncio.Event()

    @property
    def state(self) -> str:
        """``serving``, ``draining`` or ``drained``: the last connection is over."""
        if not self.begun:
            return "serving"
        return "draining" if self._open else "drained"

    @property
    def _open(self) -> int:
        streams = 0 if self._streams is None else len(self._streams)
        return len(self._registry) + streams

    def fault(self) -> Fault | None:
        """Return that no traffic should be sent here, once it has begun."""
        return Fault("draining", failing=True) if self.begun else None

    def begin(self) -> None:
        """Begin; nothing happens when it has."""
        if self.begun:
            return
        self.begun = True
        self._refuse()
        self._left = [record.connection for record in self._registry.slots()]
        self._left += self._streams or ()
        self._rng.shuffle(self._left)
        self._count = len(self._left)
        self._begun_at = self._clock.now()
        log.info("draining", clients=self._count, seconds=self._time)
        clients = set(self._left)
        for connection in self._registry:
            if connection not in clients:
                connection.send_away()
        self._step()

    def hurry(self) -> None:
        """Send all that are left away now."""
        self._time = 0.0

    async def finish(self) -> None:
        """Begin, unless it has begun, and wait for the end."""
        self.begin()
        await self._over.wait()

    def _step(self) -> None:
        now = self._clock.now()
        if self._open:
            self._tell(now)
            if not self._left:
                self._close(now)
        closed_at = self._closed_at
        if not self._open or (closed_at is not None and now >= closed_at + CLOSING):
            log.info("drained", connections=self._open)
            self._over.set()
        else:
            self._clock.call_at(now + STEP, self._step)

    def _tell(self, now: float) -> None:
        passed = now - self._begun_at
        share = 1.0 if passed >= self._time else passed / self._time
        told = self._count - len(self._left)
        for _ in range(min(int(share * self._count) - told, PORTION)):
            self._left.pop().send_away()

    def _close(self, now: float) -> None:
        if self._closed_at is not None:
            return
        if self._told_at is None:
            self._told_at = now
        late = now >= self._told_at + ANSWERS
        if late or not any(connection.in_flight for connection in self._registry):
            self._closed_at = now
            for connection in self._registry:
                connection.disconnect(SHUTDOWN)
            for stream in self._streams or ():
                stream.send_away()  # one that was opened meanwhile

"""Payload encoder: any object to JSON text, off the event loop unless it is small.

A value that is small, of types that run no code of the application, is encoded at
once. Any other goes to a thread, for `SECONDS` at most: then the caller gets the error
object, and the thread is left to itself until the object's method returns.

Threads take turns with the event loop, 5 ms each (`sys.getswitchinterval`), and several
that compute take many turns before the loop has its own: with one, the loop waits for
14 ms of their work at most; with four, for 92 ms (benchmarks/bench_encoder.py). So
a value waits while another is being *computed*. One whose method sleeps or waits for a
lock takes no turns, and holds nobody up.

Invariants; all state is the event loop's, and a thread knows its job alone:

P1 A call ends once: with the text; with the error object, `SECONDS` after a thread
   began; or refused with 111, temporary, when `WAITING` values wait already, when none
   began with it in `PATIENCE`, or when the encoder is closed.
P2 There are at most `THREADS` threads. One whose job was given up is taken until the
   job ends.
P3 A job begins only when each other is over, was given up, or has used less than a
   twentieth of the time since it was last looked at.
P4 `in_order`: texts of one key are handed out in the order of the calls, each when the
   one before it has been used, or has failed.

Interleavings that could break them, each a test in tests/payload: the text comes after
the deadline, or after the caller was cancelled (P1); a caller is cancelled while it
waits, for a thread or for the text before it (P1, P4); all threads are stuck (P1, P2);
the method before ends in the same turn in which the wait is over (P1); a job is given
up while others wait (P3); the encoder is closed with jobs waiting and under way (P1).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Final

from service.core.errors import TOO_MANY_REQUESTS, ReplyError
from service.core.model import RawJson
from service.core.ports import Clock, Timer
from service.payload.serializer import SECONDS, Serializer
from service.payload.walk import Walk

__all__ = ["PayloadEncoder"]

THREADS: Final = 8
"""Objects whose methods may block at once (count)."""

WAITING: Final = 64
"""Values that wait for a thread, and those behind them in order: 16 times as many."""

PATIENCE: Final = 1.0
"""Seconds that a value waits for a thread, or it is refused."""

_IN_ORDER: Final = 16 * WAITING
_LOOK: Final = 0.01  # s between two looks at whether a thread computes
_COMPUTES: Final = 0.05  # share of the time that a thread uses, or it is blocked

_WORK: Final = 0.001  # s after which a thread lets the event loop go on, and how long
_REST: Final = 0.0005


class _Pauses:
    """Gives the event loop its turn; without, each of its system calls loses 5 ms."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self._until:
            time.sleep(_REST)
            self._until = time.monotonic() + _WORK


def cpu_time(thread: threading.Thread) -> float | None:
    """Return the seconds that a living thread has computed; None if unknown."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return None  # macOS, Windows
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


class _Job:
    """One value on its way."""

    __slots__ = ("given_up", "text", "timer", "value", "walk")

    def __init__(self, value: object) -> None:
        self.value = value
        self.text: asyncio.Future[RawJson] = asyncio.get_running_loop().create_future()
        self.timer: Timer | None = None
        self.walk: Walk | None = None
        self.given_up = False

    def walking(self, walk: Walk) -> None:
        self.walk = walk

    def end(self, outcome: RawJson | BaseException) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.text.done():
            return
        if isinstance(outcome, BaseException):
            self.text.set_exception(outcome)
        else:
            self.text.set_result(outcome)


class _Worker:
    """One thread.

    Attributes:
        job: What it does; None while it waits for a job.
    """

    def __init__(
        self,
        dump: Callable[[object, Callable[[Walk], object]], RawJson],
        done: Callable[[_Worker, RawJson | BaseException], None],
        cpu: Callable[[threading.Thread], float | None],
    ) -> None:
        self.job: _Job | None = None
        self._dump = dump
        self._done = done
        self._cpu = cpu
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._looked = 0.0
        self._used: float | None = 0.0
        self._computes = True
        # Its object's method may never return; that shall not hold up the exit.
        self._thread = threading.Thread(target=self._main, name="payload", daemon=True)
        self._thread.start()

    def begin(self, job: _Job, now: float) -> None:
        """Do a job."""
        self.job = job
        self._looked, self._used = now, self._cpu(self._thread)
        self._computes = True
        self._queue.put(job)

    def computes(self, now: float) -> bool:
        """Tell whether its job takes turns with the event loop (P3)."""
        if self.job is None or self.job.given_up:
            return False
        elapsed = now - self._looked
        if elapsed >= _LOOK / 2:
            used = self._cpu(self._thread)
            if used is not None and self._used is not None:
                self._computes = used - self._used >= elapsed * _COMPUTES
            self._looked, self._used = now, used
        return self._computes

    def stop(self) -> None:
        """End the thread when it has nothing to do any more."""
        self._queue.put(None)

    def _main(self) -> None:
        while (job := self._queue.get()) is not None:
            outcome: RawJson | BaseException
            try:
                outcome = self._dump(job.value, job.walking)
            except BaseException as error:  # of the value; it passes through to `dump`
                outcome = error
            del job
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._done, self, outcome)
            del outcome


class PayloadEncoder:
    """Encodes the payloads of one service.

    Args:
        clock: Times the waits.
        cpu: Returns the seconds that a thread has computed, None if unknown.

    Attributes:
        late: Values replaced by the error object because of the time.
        refused: Values refused: too many were waiting, or for too long.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        cpu: Callable[[threading.Thread], float | None] = cpu_time,
    ) -> None:
        self._clock = clock
        self._cpu = cpu
        self._serializer = Serializer(time.monotonic, pause=_Pauses())
        self._workers: list[_Worker] = []
        self._waiting: dict[_Job, None] = {}
        self._look: Timer | None = None
        self._newest: dict[str, asyncio.Future[None]] = {}  # not used yet, by key
        self._in_order = 0
        self._closed = False
        self.late = 0
        self.refused = 0

    @property
    def busy(self) -> int:
        """Threads that have a job (count)."""
        return sum(worker.job is not None for worker in self._workers)

    @property
    def waiting(self) -> int:
        """Values that wait for a thread (count)."""
        return len(self._waiting)

    async def dump(self, value: object) -> RawJson:
        """Return *value* as strict JSON text, as `Serializer.dump` does.

        Raises:
            ReplyError: 111, temporary: too many values are waiting.
        """
        if self._serializer.is_small(value):
            return self._serializer.dump(value)
        job = _Job(value)
        if self._closed or len(self._waiting) >= WAITING:
            self._refuse(job)
        else:
            self._waiting[job] = None
            when = self._clock.now() + PATIENCE
            job.timer = self._clock.call_at(when, partial(self._refuse, job))
            self._start()
        try:
            return await job.text
        finally:
            if job in self._waiting:  # the caller was cancelled
                del self._waiting[job]
                job.end(asyncio.CancelledError())

    @asynccontextmanager
    async def in_order(self, key: str, value: object) -> AsyncIterator[RawJson]:
        """Give `dump` of *value*, when the texts of *key* before it have been used.

        Raises:
            ReplyError: As `dump`.
        """
        before = self._newest.get(key)
        if before is None and self._serializer.is_small(value):
            yield self._serializer.dump(value)
            return
        if self._in_order >= _IN_ORDER:
            self.refused += 1
            raise ReplyError(TOO_MANY_REQUESTS, reason="too many payloads wait")
        used = self._newest[key] = asyncio.get_running_loop().create_future()
        self._in_order += 1

        def use(_: object = None) -> None:
            self._in_order -= 1
            used.set_result(None)
            if self._newest[key] is used:
                del self._newest[key]

        try:
            text = await self.dump(value)
            if before is not None and not before.done():
                await asyncio.shield(before)
            yield text
        finally:
            if before is None or before.done():
                use()
            else:  # this one failed; those behind it wait for the one before it
                before.add_done_callback(use)

    def close(self) -> None:
        """Refuse what waits, and end the threads as their jobs end."""
        self._closed = True
        for job in tuple(self._waiting):
            self._refuse(job)
        if self._look is not None:
            self._look.cancel()
            self._look = None
        for worker in self._workers:
            worker.stop()

    def _start(self) -> None:
        """Begin with the value that has waited longest, if one may begin."""
        while self._waiting:
            worker = self._free()
            if worker is None:
                break
            job = next(iter(self._waiting))
            del self._waiting[job]
            if job.timer is not None:
                job.timer.cancel()
            now = self._clock.now()
            late = partial(self._give_up, job)
            job.timer = self._clock.call_at(now + SECONDS, late)
            worker.begin(job, now)
        if self._waiting and self._look is None:
            when = self._clock.now() + _LOOK
            self._look = self._clock.call_at(when, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self._start()

    def _free(self) -> _Worker | None:
        now = self._clock.now()
        # All are looked at, so that each is measured over a short time.
        if any([worker.computes(now) for worker in self._workers]):
            return None
        for worker in self._workers:
            if worker.job is None:
                return worker
        if len(self._workers) == THREADS:
            return None
        worker = _Worker(self._serializer.dump, self._done, self._cpu)
        self._workers.append(worker)
        return worker

    def _done(self, worker: _Worker, outcome: RawJson | BaseException) -> None:
        job, worker.job = worker.job, None
        assert job is not None
        job.end(outcome)
        self._start()

    def _give_up(self, job: _Job) -> None:
        job.given_up = True
        self.late += 1
        job.end(self._serializer.give_up(job.value, job.walk))
        self._start()

    def _refuse(self, job: _Job) -> None:
        self._waiting.pop(job, None)
        self.refused += 1
        job.end(ReplyError(TOO_MANY_REQUESTS, reason="too many payloads wait"))

"""Timer wheel: the timers of all connections on one timer of the event loop.

Ten thousand idle connections have a ping due every 2.5 ms, and to wake the process for
one costs more than the ping. So a time is rounded up to a *slot*, by a 16th of the wait
at most and never by more than `LONGEST`, and all that fell into a slot rings at once.
A short wait stays as exact as it was; nothing ever rings early.

Invariants:

W1 A timer is in at most one slot, and `DeadlineTimer._slot` is the time of that; `None`
   exactly while it is in none.
W2 While any slot is filled, the clock has one timer of ours, at the earliest of them or
   before; there is never a second one, however many connections there are.
W3 A timer that was stopped does not ring, not even when it was stopped by one that rang
   before it in the same slot.
W4 At most `PORTION` ring in one turn of the event loop; the rest in the next ones.
W5 One that raises does not keep the others from ringing.
W6 What is asked for while timers ring is never rung in that same turn, so a timer that
   asks for a time that is over does not hold the loop.

Interleavings that could break these, each a test in tests/connections/
test_timer_wheel.py: a timer that stops another one of its slot, or itself; that asks
again, for now or for later; that raises; one stopped and asked for again in between; an
earlier time than all others; a slot with more than a portion; a clock that stood still.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from service.core.ports import Clock, Timer
from service.settings import ClientSettings

__all__ = ["LONGEST", "PORTION", "DeadlineTimer", "TimerWheel", "wheel_for"]

LONGEST: Final = 1.0
"""Seconds by which a timer rings late at most, if the loop is on time."""

PORTION: Final = 64
"""Timers that ring in one turn of the event loop (count): some 1 ms of pings."""

_PART = 16  # of the wait, by which it is rounded up at most


class TimerWheel:
    """The timers of one event loop.

    Args:
        clock: Has the one timer.
        longest: Seconds by which a time is rounded up at most; 0 for not at all.
    """

    __slots__ = ("_at", "_clock", "_longest", "_slots", "_timer", "_times")

    def __init__(self, clock: Clock, longest: float = LONGEST) -> None:
        self._clock = clock
        self._longest = longest
        self._slots: dict[float, dict[DeadlineTimer, None]] = {}
        self._times: list[float] = []  # of the slots, a heap; some may be empty
        self._timer: Timer | None = None
        self._at = math.inf  # of `_timer`

    def add(self, timer: DeadlineTimer, due: float) -> float:
        """Ring *timer* once it is *due*; return the time of its slot."""
        when = self._round(due)
        slot = self._slots.get(when)
        if slot is None:
            slot = self._slots[when] = {}
            heappush(self._times, when)
        slot[timer] = None
        if when < self._at:
            self._arm()
        return when

    def remove(self, timer: DeadlineTimer, when: float) -> None:
        """Take *timer* out of the slot at *when*."""
        slot = self._slots[when]
        del slot[timer]
        if not slot:
            self._drop(when)

    def _round(self, due: float) -> float:
        wait = due - self._clock.now()
        most = min(self._longest, wait / _PART)
        if most <= 0:
            return due
        # A power of two, so that waits of about one length share their slots.
        step: float = 2.0 ** math.floor(math.log2(most))
        return math.ceil(due / step) * step

    def _drop(self, when: float) -> None:
        """Forget an empty slot."""
        del self._slots[when]
        if not self._slots:
            self._times.clear()
            if self._timer is not None:
                self._disarm()
        elif len(self._times) > 2 * len(self._slots) + PORTION:
            self._times = sorted(self._slots)

    def _arm(self) -> None:
        """Set the timer for the earliest slot."""
        self._disarm()
        times = self._times
        while times and times[0] not in self._slots:
            heappop(times)
        if times:
            self._at = times[0]
            self._timer = self._clock.call_at(self._at, self._ring)

    def _disarm(self) -> None:
        self._at = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer, self._at = None, -math.inf  # no other is set meanwhile
        due = self._take()
        try:
            while due:
                due.pop().ring()
        finally:
            for timer in due:  # one has raised
                timer.put_off()
            self._arm()

    def _take(self) -> list[DeadlineTimer]:
        """Take a portion of what is due out of its slots, the earliest at the end."""
        now = self._clock.now()
        taken: list[DeadlineTimer] = []
        while self._times and self._times[0] <= now and len(taken) < PORTION:
            slot = self._slots.get(self._times[0])
            if slot is None:
                heappop(self._times)
                continue
            for timer in list(slot)[: PORTION - len(taken)]:
                del slot[timer]
                timer.taken()
                taken.append(timer)
            if not slot:
                del self._slots[heappop(self._times)]
        taken.reverse()
        return taken


class DeadlineTimer:
    """A timer that rings at the earliest time asked for, until it is asked again.

    It is never moved later, only found to be early: so a pong costs nothing.
    """

    __slots__ = ("_due", "_ring", "_slot", "_wheel")

    def __init__(self, wheel: TimerWheel, ring: Callable[[], object]) -> None:
        self._wheel = wheel
        self._ring = ring
        self._due = math.inf
        self._slot: float | None = None

    def by(self, due: float) -> None:
        """Ring at *due*, or earlier if it was asked to."""
        if due < self._due:
            self.stop()
            self._due = due
            self._slot = self._wheel.add(self, due)

    def last(self, due: float, ring: Callable[[], object]) -> None:
        """Call *ring* at *due*, and nothing else."""
        self.stop()
        self._ring = ring
        self.by(due)

    def stop(self) -> None:
        """Do not ring."""
        self._due = math.inf
        if self._slot is not None:
            slot, self._slot = self._slot, None
            self._wheel.remove(self, slot)

    # For the wheel.

    def taken(self) -> None:
        """Note that it is in no slot any more: it rings in this turn."""
        self._slot = None

    def ring(self) -> None:
        """Ring, unless it was stopped or moved since it was taken."""
        if self._slot is None and self._due < math.inf:
            self._due = math.inf
            self._ring()

    def put_off(self) -> None:
        """Ring in a turn to come, instead of in this one."""
        if self._slot is None and self._due < math.inf:
            self._slot = self._wheel.add(self, self._due)


def wheel_for(clock: Clock, settings: ClientSettings) -> TimerWheel:
    """Return a wheel whose timers are never as late as a pong may be.

    A tick that is so late means that the process stood still, and the silence of the
    peer does not count until then (`service.session.keepalive`).
    """
    return TimerWheel(clock, min(LONGEST, settings.pong_timeout / 2))

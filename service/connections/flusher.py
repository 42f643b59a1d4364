"""Flusher: when each outbox is flushed, at the end of this turn or within a window.

Most is flushed at the end of the loop's turn. Publications of a namespace with a batch
window may wait for that window: those that come meanwhile go out in the same frame.
Outboxes that wait for windows of one length are due in the order in which they began to
wait, so they share one timer, and a publication to a thousand subscribers sets one.

Invariants:

W1 An outbox waits in one window at most, and only once. It is due no later than any
   message in it may wait: a shorter window replaces a longer one.
W2 A window that is over adds its outboxes to those of the turn: they are flushed in
   portions, as all are.
W3 There is a timer for a window while an outbox waits in it, and none else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from _speedups import FlushQueue
from service.core.ports import Clock, Timer

__all__ = ["Flusher"]


class _Batching(Protocol):
    def window_over(self) -> None: ...


class _Stuck(Protocol):
    @property
    def size(self) -> int: ...


class Window:
    """The outboxes that wait for the end of windows of one length.

    Attributes:
        seconds: The length.
    """

    __slots__ = ("_clock", "_due", "_timer", "seconds")

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self._clock = clock
        self._due: dict[_Batching, float] = {}  # the soonest first
        self._timer: Timer | None = None

    def add(self, waiting: _Batching, when: float) -> None:
        """Let *waiting* wait until *when*, later than all that wait already."""
        self._due[waiting] = when
        if self._timer is None:
            self._timer = self._clock.call_at(when, self._over)

    def due(self, waiting: _Batching) -> float:
        """Return until when *waiting* waits."""
        return self._due[waiting]

    def remove(self, waiting: _Batching) -> None:
        """Let *waiting* wait no more."""
        del self._due[waiting]
        if not self._due and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _over(self) -> None:
        self._timer = None
        now = self._clock.now()
        for waiting, when in tuple(self._due.items()):
            if when > now:
                self._timer = self._clock.call_at(when, self._over)
                break
            del self._due[waiting]
            waiting.window_over()


class Flusher(FlushQueue):
    """Flushes every outbox that was put to, at the end of this turn of the loop.

    Args:
        call_soon: As the loop's method.
        clock: Times the batch windows.

    Attributes:
        stuck: The outboxes whose sockets take no more.
    """

    __slots__ = ("_clock", "_windows", "stuck")

    def __init__(
        self, call_soon: Callable[[Callable[[], None]], object], clock: Clock
    ) -> None:
        super().__init__(call_soon, clock.now)
        self._clock = clock
        self._windows: dict[float, Window] = {}  # one for each length in the settings
        self.stuck: set[_Stuck] = set()

    @property
    def stuck_bytes(self) -> int:
        """Bytes waiting in all outboxes whose sockets take no more."""
        return sum(outbox.size for outbox in self.stuck)

    def wait(self, waiting: _Batching, seconds: float, open: Window | None) -> Window:
        """Let *waiting* wait for a window, unless it is due before that is over.

        Args:
            waiting: Its `window_over` is called then.
            seconds: The length.
            open: The window in which it waits already; None for none.

        Returns:
            The window in which it waits.
        """
        if open is not None:
            if open.seconds <= seconds:
                return open
            when = self._clock.now() + seconds
            if open.due(waiting) <= when:
                return open
            open.remove(waiting)
        else:
            when = self._clock.now() + seconds
        window = self._windows.get(seconds)
        if window is None:
            window = self._windows[seconds] = Window(seconds, self._clock)
        window.add(waiting, when)
        return window

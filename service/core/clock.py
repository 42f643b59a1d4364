"""System clock: the one module that reads the machine's time; and waiting by any."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.core.ports import Clock, Timer

__all__ = ["SystemClock", "sleep"]


async def sleep(clock: Clock, seconds: float) -> None:
    """Wait by *clock*."""
    woken = asyncio.Event()
    timer = clock.call_at(clock.now() + seconds, woken.set)
    try:
        await woken.wait()
    finally:
        timer.cancel()


class SystemClock:
    """`ports.Clock` on the running event loop. One loop, one clock."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def anchor(self) -> None:
        """Read the time of day anew: a machine that was frozen has missed some."""
        self._offset = time.time() - time.monotonic()

    def wall(self) -> float:
        """Return Unix seconds: the time of the start plus what has passed since."""
        return time.monotonic() + self._offset

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call *callback* on the running event loop when `now` reaches *when*."""
        # The clocks of asyncio and uvloop have other zero points, so pass a delay.
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, when - time.monotonic()), callback)

"""Send window of one connection: how much of a catch-up may be on its way at once.

Recovered publications go out in *rounds*. A round hands over as many bytes as the
window has, in replies and pushes of all the connection's channels together. The next
one begins when the peer's kernel has acknowledged all but a quarter of them. How long
that took is the speed of the link, and the window becomes what the link carries in
`TARGET`, so whatever is written next, a reply or a ping, waits for little more.

    give ──► full ──► three quarters acknowledged ──► resized, and open again

A new window is small, and at most doubles: in a round, and in `STEP`. Buffers between
us and the client (a reverse proxy's) take their fill at once, however slow the last
link is; so a fast first round proves little, and the next is larger by as much only. A
fast client has the whole `recovery_size` after 0.4 s. A window that has lain unused
begins anew: the client may have changed its network.

Where the server cannot tell what was acknowledged (`ports.Socket.progress`), all that
was written counts, and only `STEP` spreads the rounds.
"""

from __future__ import annotations

from collections.abc import Callable

from service.connections.outbox import Outbox
from service.core.ports import Clock, Timer

__all__ = ["FIRST", "LATEST", "SOONEST", "STEP", "SendWindow"]

FIRST = 16 * 1024
"""Bytes of the first round, and the fewest of any; 0.8 s at 20 KB/s."""

TARGET = 1.0
"""Seconds of the link's time that a round takes."""

STEP = 0.1
"""Seconds; a window that is not the largest does not double sooner."""

SOONEST = 0.02
"""Seconds, at least, between two looks at what was acknowledged: nothing reports it."""

LATEST = 1.0
"""Seconds between two of these looks, at most."""

_UNKNOWN = -1


class SendWindow:
    """The window of one connection, in bytes of recovered publications.

    Args:
        clock: Times the rounds.
        limit: The largest window.
        outbox: Writes what is handed over.
        progress: As `ports.Socket.progress`.
        opened: Called when the window may be open again, after `is_open` was false.
    """

    __slots__ = (
        "_acknowledged",
        "_begun",
        "_clock",
        "_given",
        "_limit",
        "_mark",
        "_opened",
        "_outbox",
        "_progress",
        "_size",
        "_timer",
        "_written",
    )

    def __init__(
        self,
        clock: Clock,
        limit: int,
        outbox: Outbox,
        progress: Callable[[], tuple[int, int]],
        opened: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._outbox = outbox
        self._progress = progress
        self._opened = opened
        self._size = min(FIRST, limit)
        self._given = 0  # bytes of this round handed over
        self._begun = 0.0  # when it began
        self._written = 0  # bytes written then
        self._acknowledged = 0  # and acknowledged
        self._mark = _UNKNOWN  # bytes written when all of the round was
        self._timer: Timer | None = None

    @property
    def left(self) -> int:
        """Bytes that may be handed over now; not above zero when the window is full."""
        if self._given:
            self._renew()
        return self._size - self._given

    def give(self, size: int) -> None:
        """Count *size* bytes that are handed over now."""
        if not self._given:
            self._begun = self._clock.now()
            self._written, self._acknowledged = self._progress()
        self._given += size
        self._mark = _UNKNOWN

    def is_open(self) -> bool:
        """Tell whether bytes may be handed over; if not, `opened` is called in time.

        To be asked when all that was handed over is written.
        """
        if self.left > 0:
            return True
        if self._timer is None:
            when = self._clock.now() + self._wait()
            self._timer = self._clock.call_at(when, self._look)
        return False

    def stop(self) -> None:
        """Do not call `opened` any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        self._opened()

    def _renew(self) -> None:
        """Begin a new round if this one is over."""
        written, acknowledged = self._progress()
        if self._mark == _UNKNOWN:
            if not self._outbox.idle:
                return
            self._mark = written
        elapsed = self._clock.now() - self._begun
        largest = self._size == self._limit
        if self._missing(acknowledged) > 0 or (elapsed < STEP and not largest):
            return
        if self._given >= self._size:
            carried = self._carried(acknowledged) * TARGET / max(elapsed, STEP)
            least = min(FIRST, self._limit)
            self._size = max(least, min(int(carried), 2 * self._size, self._limit))
        self._given = 0

    def _missing(self, acknowledged: int) -> int:
        """Return the bytes still to be acknowledged before the round is over."""
        rest = min(self._given, self._mark - self._written) // 4
        return self._mark - rest - acknowledged

    def _carried(self, acknowledged: int) -> float:
        """Return the bytes that the link has carried since the round began."""
        written = self._mark - self._written
        if written == 0:
            return self._given  # the server cannot tell
        # Compressed, there are fewer of them on the link.
        ratio = max(1.0, self._given / written)
        return (acknowledged - self._acknowledged) * ratio

    def _wait(self) -> float:
        """Return the seconds after which the round may be over."""
        acknowledged = self._progress()[1]
        missing = self._missing(acknowledged)
        moved = acknowledged - self._acknowledged
        elapsed = self._clock.now() - self._begun
        if missing <= 0:
            wait = STEP - elapsed
        elif moved > 0:
            wait = elapsed * missing / moved
        else:
            wait = elapsed / 2
        return min(max(wait, SOONEST), LATEST)

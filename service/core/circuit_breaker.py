"""Circuit breaker around calls to one remote service, with exponential cool-down.

    closed ── 3 failures in a row ──► open ── after the cool-down ──► half-open
      ▲                                 ▲                                 │
      │                                 └───────── the probe failed ──────┤
      └──────────────────────────────── the probe succeeded ──────────────┘

While the breaker is closed, every call is made; one or two failures change nothing.
While it is open, or half-open with its one probe under way, no call but the probe may
be made. A call that began earlier may still end: its success closes the breaker in any
state, since the remote service has answered.

"Remote service" is DynamoDB, or the file of the embedded store: whatever may be gone
while this process runs. Mistakes of a caller are reported neither as a success nor as a
failure.

1.0 s after the breaker opened, `cleanup` is called once if it has not closed by then:
the caller gives back what only works while the remote service answers. Each timer
checks the state again, so a timer that raced with a recovery does nothing.

A process may be frozen, and its timers with it. Once it is thawed, `catch_up` lets the
next call be the probe, if the time of the probe has come meanwhile.

Interleavings: a late failure of an older call while it is open puts off no probe; a
late success while a probe is under way closes it, and the end of that probe is one more
report; a probe that cannot even begin counts as one that failed, or the breaker would
stay half-open for ever.

Event loop only, no tasks: `close` cancels the timers, and nothing is left to wait for.

Source:
    Nygard, "Release It!", 2nd edition, 2018, section 5.2: circuit breaker.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal

from _speedups import backoff
from service.core.ports import Clock, Timer

__all__ = ["Breaker", "BreakerState"]

FAILURES = 3  # failures in a row that open the breaker
COOL_DOWN = 0.5  # s until the first probe, doubled for each further one
COOL_DOWN_CAP = 4.0  # s, the longest wait for a probe
CLEANUP_AFTER = 1.0  # s from the opening

BreakerState = Literal["closed", "open", "half-open"]


class Breaker:
    """One breaker, around calls to one remote service.

    Args:
        clock: Calls the probe and the cleanup.
        probe: Begins one call, whose end is reported to `succeeded` or `failed`.
        cleanup: Called once, 1.0 s after an opening that lasts.
        rng: Spreads the probes of many processes by up to 0.1 s.
        changed: Called with each new state and its reason.

    Attributes:
        state: ``closed``, ``open`` or ``half-open``.
        reason: The cause of the last failure, in a few words; "" when closed.
        openings: Changes from closed to open so far; count.
        recoveries: Changes back to closed so far; count.
        listeners: Each is called with True when it has opened, and with False when it
            has closed again; not for what is between.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        probe: Callable[[], object],
        cleanup: Callable[[], object],
        rng: Random,
        changed: Callable[[BreakerState, str], object],
    ) -> None:
        self.state: BreakerState = "closed"
        self.reason = ""
        self.openings = 0
        self.recoveries = 0
        self.listeners: list[Callable[[bool], object]] = []
        self._clock = clock
        self._begin_probe = probe
        self._clean_up = cleanup
        self._rng = rng
        self._changed = changed
        self._failures = 0  # in a row
        self._probes = 0  # since it opened
        self._probe_timer: Timer | None = None
        self._probe_due = 0.0  # Unix seconds
        self._cleanup_timer: Timer | None = None
        self._ended = False

    @property
    def closed(self) -> bool:
        """True when calls may be made."""
        return self.state == "closed"

    def succeeded(self) -> None:
        """Report that the remote service answered."""
        self._failures = 0
        if self.state == "closed":
            self._probes = 0
            return
        self.reason = ""
        self._probes = 0
        self._cancel()
        self.recoveries += 1
        self._enter("closed")
        self._tell(opened=False)

    def failed(self, reason: str) -> None:
        """Report a call that did not reach the remote service, or got no answer."""
        self.reason = reason
        self._failures += 1
        if self._ended or self.state == "open":
            return
        if self.state == "half-open":
            self._wait()
        elif self._failures >= FAILURES:
            self.openings += 1
            when = self._clock.now() + CLEANUP_AFTER
            self._cleanup_timer = self._clock.call_at(when, self._cleanup)
            self._wait()
            self._tell(opened=True)

    def catch_up(self) -> None:
        """Close it, until the next failure, if the probe is late by the wall clock.

        For a process that has stood still, and its timers with it.
        """
        if self.closed or self._ended or self._clock.wall() < self._probe_due:
            return
        if self._cleanup_timer is not None:
            self._clean_up()
        self._cancel()
        self._failures = FAILURES - 1
        self.recoveries += 1
        self._enter("closed")
        self.reason = ""
        self._tell(opened=False)

    def close(self) -> None:
        """Cancel the timers: no probe and no cleanup is called any more."""
        self._ended = True
        self._cancel()

    def _wait(self) -> None:
        """Open the breaker, and probe after the cool-down."""
        delay = backoff(self._probes, self._rng.random(), COOL_DOWN, cap=COOL_DOWN_CAP)
        self._probes += 1
        self._probe_timer = self._clock.call_at(self._clock.now() + delay, self._probe)
        self._probe_due = self._clock.wall() + delay
        self._enter("open")

    def _probe(self) -> None:
        self._probe_timer = None
        if self.state == "open" and not self._ended:
            self._enter("half-open")
            try:
                self._begin_probe()
            except BaseException as error:
                self.failed(type(error).__name__)
                raise

    def _cleanup(self) -> None:
        self._cleanup_timer = None
        if self.state != "closed" and not self._ended:
            self._clean_up()

    def _enter(self, state: BreakerState) -> None:
        self.state = state
        self._changed(state, self.reason)

    def _tell(self, *, opened: bool) -> None:
        for listener in self.listeners:
            listener(opened)

    def _cancel(self) -> None:
        for timer in (self._probe_timer, self._cleanup_timer):
            if timer is not None:
                timer.cancel()
        self._probe_timer = self._cleanup_timer = None

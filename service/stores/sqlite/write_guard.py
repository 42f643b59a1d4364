"""Guard of a SQLite store's writes: breaker, repeats behind a lock, a fresh connection.

The breaker counts each try of a batch, and each other write: 3 faults of the database
in a row open it. While it is open, whatever would write fails at once; its probe and
the sweep alone ask the database. What waits in the queue when it opens fails behind the
batch that opened it. One second after the opening the writer's connection is closed and
opened anew, unless the database has answered by then: with the old one go its
descriptors, locks and caches.

A batch that met another program's lock is tried once more, 0.5 s later, if that is
within `CHAIN` of the beginning of its first try: so no batch opens the breaker alone.
Other faults do not pass so soon, and are told to the publisher at once. While the file
is locked, and with the default `lock_timeout` of 1 s, the first batch waits for 2 s,
the next one opens the breaker after 1 s more, and no other waits for the lock.

Invariants:

* `failing` is set exactly while the breaker is not closed, and so is `refusal` of the
  writer's thread, until the store closes.
* Each `faulted` is answered by one `decide`: at once, by the timer, or by `close`. A
  thread that waits for a timer has nothing else to report, so the breaker cannot open
  meanwhile.

Event loop only, except what `probe` and `reopen` do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import structlog

from _speedups import backoff
from service.core.circuit_breaker import Breaker, BreakerState
from service.core.errors import StoreUnavailable
from service.core.ports import Clock, Timer
from service.stores.sqlite.schema import is_fault, is_locked, reason
from service.stores.sqlite.writer import Job, StoreThread

__all__ = ["WriteGuard"]

CHAIN = 2.0  # s from the beginning of a batch's first try to the end of its last (R14)

_log = structlog.get_logger(__name__)


class WriteGuard:
    """Decides what is written while the database fails.

    Args:
        clock: Times repeats, probes and the cleanup.
        rng: Spreads them.
        lock_timeout: Seconds that a try waits for a lock.

    Attributes:
        breaker: The circuit breaker.
        failing: Why nothing is written at present; "" while the breaker is closed.
    """

    def __init__(
        self, clock: Clock, rng: random.Random, *, lock_timeout: float
    ) -> None:
        self.failing = ""
        self.breaker = Breaker(
            clock,
            probe=self._begin_probe,
            cleanup=self._clean_up,
            rng=rng,
            changed=self._changed,
        )
        self._clock = clock
        self._rng = rng
        self._lock_timeout = lock_timeout
        self._again: Timer | None = None  # lets the batch be tried again
        self._closed = False

    def start(
        self,
        writer: StoreThread,
        *,
        probe: Callable[[], None],
        reopen: Callable[[], bool],
    ) -> None:
        """Begin to guard.

        Args:
            writer: Its thread.
            probe: Writes something, there.
            reopen: Opens its connection anew, there; returns whether it did.
        """
        self._writer = writer
        self._probe = probe
        self._reopen = reopen

    def close(self) -> None:
        """Fail the batch that waits to be tried again; try nothing more than once."""
        self._closed = True
        self.breaker.close()
        if self._again is not None:
            self._again.cancel()
            self._give_up()

    def succeeded(self) -> None:
        """Note that something was written."""
        self.breaker.succeeded()

    def failed(self, error: BaseException) -> None:
        """Note the failure of a write; what is not the database's is not counted."""
        if is_fault(error):
            self.breaker.failed(reason(error))
            if self.breaker.closed:
                _log.warning("a write has failed", reason=reason(error))

    def faulted(self, error: BaseException, tries: int) -> None:
        """Decide about a batch that the database has failed.

        Args:
            error: The fault.
            tries: How often the batch was tried before.
        """
        self.failed(error)
        pause = backoff(tries, self._rng.random())
        left = CHAIN - self._lock_timeout - pause
        can_help = is_locked(error) and not tries and left > 0
        if self._closed or not self.breaker.closed or not can_help:
            self._give_up()
            return
        again = partial(self._try_again, min(self._lock_timeout, left))
        self._again = self._clock.call_at(self._clock.now() + pause, again)

    def _try_again(self, wait: float) -> None:
        self._again = None
        self._writer.decide(wait)

    def _give_up(self) -> None:
        self._again = None
        if self._closed:  # what is behind it shall not wait for the lock, too
            self._writer.refusal = StoreUnavailable("the store cannot write: closing")
        self._writer.decide(None)

    # For the breaker

    def _begin_probe(self) -> None:
        self._writer.submit(Job(self._probe, self._probed))

    def _probed(self, _: None, error: BaseException | None) -> None:
        if error is None:
            self.breaker.succeeded()
        else:
            self.breaker.failed(reason(error))

    def _clean_up(self) -> None:
        self._writer.submit(Job(self._reopen_if_open, self._reopened))

    def _reopen_if_open(self) -> bool:
        # On the thread, and perhaps some time later: a recovery cancels it here, too.
        return not self.breaker.closed and self._reopen()

    def _reopened(self, done: bool | None, error: BaseException | None) -> None:
        if error is not None:
            _log.warning("the store cannot be opened anew", reason=reason(error))
        elif done:
            _log.info("the store was opened anew")

    def _changed(self, state: BreakerState, cause: str) -> None:
        if state == "closed":
            self.failing = ""
            self._writer.refusal = None
            _log.info("the store can write again")
            return
        if not self.failing:
            _log.error("the store cannot write", reason=cause)
        self.failing = f"the store cannot write: {cause}"
        self._writer.refusal = StoreUnavailable(self.failing)

"""SQLite writer thread with group commit, and the health of writing.

The event loop puts appends and jobs into one queue; the thread takes what waits.
Appends that stand together go into one commit. What the thread has to report is put on
a deque, with at most one wake-up of the loop outstanding. The reader's thread is of the
same class, with jobs only.

Invariants:

* Results are reported in the order in which the work was done.
* Each append and job is reported exactly once, whatever happens in between. If the
  thread dies, the loop itself empties the queue: it is the only producer, so nothing
  can be put in behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import structlog

from _speedups import backoff
from service.core.errors import StoreUnavailable, describe
from service.core.model import Appended, Channel, Draft
from service.core.ports import AppendDone, Clock, Committed, History, Timer
from service.stores.sqlite.schema import is_invalid_data, reason

__all__ = ["BatchResult", "Job", "QueuedAppend", "StoreThread", "WriteHealth"]

BATCH_BYTES = 1024 * 1024  # per commit: some milliseconds, for which others wait

# While commits fail, one is tried now and then even if nobody publishes, so that a
# server taken out of service by its fault comes back: after 0.5 s, then twice as long
# each time, up to this.
PROBE_CAP = 4.0  # s

T = TypeVar("T")
_NOTHING = object()
_log = structlog.get_logger(__name__)

# Plain tuples and slotted objects: a dataclass for each publication was measurable.

QueuedAppend = tuple[Channel, Draft, History, AppendDone, int]
"""One accepted append; the last item is its cost in the queue, in bytes."""


class BatchResult:
    """The outcome of one committed batch.

    Attributes:
        appends: The batch.
        outcomes: One for each append.
        committed: The publications that are fresh, in order.
        sizes: The history size of each channel that got offsets.
        stored: Whether anything was written to the database.
    """

    __slots__ = ("appends", "committed", "outcomes", "sizes", "stored")

    def __init__(self, appends: Sequence[QueuedAppend]) -> None:
        self.appends = appends
        self.outcomes: list[Appended] = []
        self.committed: list[Committed] = []
        self.sizes: dict[Channel, int] = {}
        self.stored = False


class Job(Generic[T]):
    """Work other than an append.

    Args:
        run: Does the work, on the thread.
        done: Called on the event loop with the result and None, or with None and the
            exception.
    """

    __slots__ = ("done", "error", "result", "run")

    def __init__(
        self,
        run: Callable[[], T],
        done: Callable[[T | None, BaseException | None], None],
    ) -> None:
        self.run = run
        self.done = done
        self.result: T | None = None
        self.error: BaseException | None = None

    def execute(self) -> None:
        """Do the work, on the thread."""
        try:
            self.result = self.run()
        except Exception as error:
            self.error = error

    def report(self) -> None:
        """Tell the caller, on the event loop."""
        self.done(self.result, self.error)


class StoreThread:
    """One thread and its queue.

    Args:
        work: "write" or "read"; the thread is named after it.
        loop: Where everything is reported.
        commit: Stores a batch of appends, on the thread; raises if none was stored.
        committed: Takes each `BatchResult`, on the loop.
        failed: Takes the appends that were not stored, and the reason, on the loop.
        died: Takes what ended the thread, on the loop, before `failed` is given the
            appends that were waiting.
        batch: Appends per commit, at most.
    """

    def __init__(
        self,
        work: str,
        loop: asyncio.AbstractEventLoop,
        *,
        commit: Callable[[list[QueuedAppend]], BatchResult],
        committed: Callable[[BatchResult], None],
        failed: Callable[[list[QueuedAppend], BaseException], None],
        died: Callable[[BaseException], None],
        batch: int,
    ) -> None:
        self._work = work
        self._loop = loop
        self._commit = commit
        self._committed = committed
        self._failed = failed
        self._died = died
        self._batch = batch
        self._queue: SimpleQueue[QueuedAppend | Job[Any] | None] = SimpleQueue()
        self._reports: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._woken = False
        self._appends: list[QueuedAppend] = []  # being stored
        self._job: Job[Any] | None = None  # being done, or next
        self._stopping = False
        self._refusal: Exception | None = None  # of the batches that are left
        self._ended: asyncio.Future[None] = loop.create_future()
        self.put: Callable[[QueuedAppend], None] = self._queue.put  # saves a call each
        self._thread = threading.Thread(
            target=self._main, name=f"store-{work}r", daemon=True
        )
        self._thread.start()

    def submit(self, job: Job[Any]) -> None:
        """Queue a job behind what is queued already."""
        self._queue.put(job)

    async def do(
        self, run: Callable[[], T], done: Callable[[T], None] | None = None
    ) -> T:
        """Do something behind what is queued already, and return its result.

        Args:
            run: Does it, on the thread.
            done: Called with the result even if the caller does not wait any more.

        Raises:
            StoreUnavailable: It was not done, or nobody knows.
        """
        future: asyncio.Future[T] = self._loop.create_future()

        def report(result: Any, error: BaseException | None) -> None:
            if error is None and done is not None:
                done(result)
            if future.done():
                return  # the caller was cancelled
            if error is None:
                future.set_result(result)
            else:
                text = f"the store cannot {self._work}: {reason(error)}"
                future.set_exception(StoreUnavailable(text))

        self.submit(Job(run, report))
        return await future

    async def stop(self) -> None:
        """Do what is queued, report it, and end."""
        self._stopping = True
        self._queue.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    # On the thread

    def _main(self) -> None:
        try:
            item = self._queue.get()
            while item is not None:
                if isinstance(item, Job):
                    self._job = item
                    item.execute()
                    self._job = None
                    self._report(Job.report, item)
                    item = self._queue.get()
                else:
                    found = self._gather(item)
                    self._store()
                    item = self._queue.get() if found is _NOTHING else found
        except BaseException as error:  # whatever it is, nobody may wait for ever
            _log.critical("store thread died", **describe(error))
            self._report(self._fail_rest, error)
        else:
            self._report(self._ended.set_result, None)

    def _gather(self, first: QueuedAppend) -> Any:
        """Take the appends behind *first*; return what ended them, or `_NOTHING`."""
        appends = self._appends
        appends.append(first)
        size = first[4]
        get = self._queue.get
        with contextlib.suppress(Empty):
            while len(appends) < self._batch and size < BATCH_BYTES:
                item = get(False)
                if type(item) is not tuple:
                    self._job = item  # type: ignore[assignment]  # or None, the end
                    return item
                appends.append(item)
                size += item[4]
        return _NOTHING

    def _store(self) -> None:
        """Store `_appends`; one by one, if invalid data of one fails them all."""
        appends, self._appends = self._appends, []
        error = self._refusal or self._try(appends)
        if error is None:
            return
        if not is_invalid_data(error) or len(appends) == 1:
            if self._stopping and not is_invalid_data(error):
                self._refusal = error  # the rest shall not wait for it again
            self._report(self._fail, (appends, error))
            return
        self._appends = appends
        while appends:
            single = [appends.pop(0)]
            error = self._try(single)
            if error is not None:
                self._report(self._fail, (single, error))

    def _try(self, appends: list[QueuedAppend]) -> Exception | None:
        try:
            result = self._commit(appends)
        except Exception as error:
            return error
        except BaseException:
            self._appends = appends + self._appends
            raise
        self._report(self._committed, result)
        return None

    def _report(self, tell: Callable[[Any], object], what: object) -> None:
        self._reports.append((tell, what))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._deliver)

    # On the event loop

    def _deliver(self) -> None:
        # Cleared before the reports are counted: one that is added after the count
        # finds the flag down and wakes the loop again.
        self._woken = False
        for _ in range(len(self._reports)):
            tell, what = self._reports.popleft()
            try:
                tell(what)
            except Exception as error:
                _log.error("a report of the store was not taken", **describe(error))

    def _fail(self, failure: tuple[list[QueuedAppend], BaseException]) -> None:
        self._failed(*failure)

    def _fail_rest(self, error: BaseException) -> None:
        """Fail all that the dead thread leaves. Nobody else takes from the queue."""
        self._died(error)
        appends, self._appends = self._appends, []
        jobs = [self._job] if self._job is not None else []
        with contextlib.suppress(Empty):
            while True:
                item = self._queue.get(False)
                if isinstance(item, Job):
                    jobs.append(item)
                elif item is not None:
                    appends.append(item)
        self._failed(appends, error)
        for job in jobs:
            job.error = error
            job.report()
        if not self._ended.done():
            self._ended.set_result(None)


class WriteHealth:
    """Fault of the last commit, and attempts to write until one succeeds.

    Event loop only.

    Args:
        clock: Calls the next attempt.
        rng: Spreads the attempts.
        submit: Queues a job on the writer's thread.
        probe: Writes something there.

    Attributes:
        fault: Why the last commit failed, None if it did not.
    """

    def __init__(
        self,
        clock: Clock,
        rng: random.Random,
        submit: Callable[[Job[None]], None],
        probe: Callable[[], None],
    ) -> None:
        self.fault: str | None = None
        self._clock = clock
        self._rng = rng
        self._submit = submit
        self._probe = probe
        self._probes = 0
        self._timer: Timer | None = None
        self._stopped = False

    def failed(self, error: BaseException) -> None:
        """Remember that writing does not work, and try again soon."""
        if self._stopped:
            return
        if self.fault is None:
            _log.error("the store cannot write", reason=reason(error))
        self.fault = f"the store cannot write: {reason(error)}"
        if self._timer is None:
            delay = backoff(self._probes, self._rng.random(), cap=PROBE_CAP)
            self._probes += 1
            self._timer = self._clock.call_at(self._clock.now() + delay, self._try)

    def recovered(self) -> None:
        """Remember that writing works."""
        self.fault = None
        self._probes = 0

    def stop(self) -> None:
        """Make no further attempt."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def _try(self) -> None:
        self._timer = None
        if self.fault is not None and not self._stopped:
            self._submit(Job(self._probe, self._tried))

    def _tried(self, _: None, error: BaseException | None) -> None:
        if error is None:
            self.recovered()
        else:
            self.failed(error)

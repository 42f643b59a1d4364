"""SQLite writer thread with group commit; the loop decides what follows a fault.

The event loop puts appends and jobs into one queue; the thread takes what waits.
The appends of one turn of the loop are handed over together, at its end: the thread is
woken once for them, not for the first alone, and they are one commit. What the thread
has to report is put on a deque, with at most one wake-up of the loop outstanding. The
reader's thread is of the same class, with jobs only.

When the database fails a batch, the thread reports that and waits: the loop, where the
breaker is, says whether the batch is tried again (the database was locked, and there is
time) or has failed. Appends keep their order, so what stands behind the batch waits as
long as the batch does (`write_guard` says how long). While `refusal` is set, appends
fail without the database being asked, but for those that need none.

Invariants:

* Results are reported in the order in which the work was done.
* Each append and job is reported exactly once, whatever happens in between. If the
  thread dies, the loop itself empties the queue: it is the only producer, so nothing
  can be put in behind it. What is not handed over yet goes before a job and the end.
* A thread that waits for a decision gets exactly one for each fault that it reported:
  the loop decides at once, or when its timer comes, or when the store closes.
* A batch is tried again only after all of it was rolled back: nothing is stored twice.
* What `tell` reports of a batch, or between two, keeps its place among the results.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import structlog

from service.core.errors import StoreUnavailable, describe
from service.core.model import Appended, Channel, Draft
from service.core.ports import AppendDone, Committed, History
from service.stores.sqlite.schema import is_fault, is_invalid_data, reason

__all__ = ["BatchResult", "Job", "QueuedAppend", "StoreThread"]

BATCH_BYTES = 1024 * 1024  # per commit: some milliseconds, for which others wait

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
    """One thread and its queue; nothing is called before `start`.

    Args:
        work: "write" or "read"; the thread is named after it.
        loop: Where everything is reported.
        commit: Stores a batch of appends, on the thread; raises if none was stored.
        wait_for_lock: Sets for how many seconds `commit` waits for a lock, on the
            thread; None for as long as the settings say. Never raises.
        faulted: Takes the fault of a batch, and how often it was tried before, on the
            loop; calls `decide` once.
        ended: Takes the end of what `do` did, on the loop: its exception, or None.
        committed: Takes each `BatchResult`, on the loop.
        failed: Takes the appends that were not stored, and the reason, on the loop.
        died: Takes what ended the thread, on the loop, before `failed` is given the
            appends that were waiting.
        batch: Appends per commit, at most.
        needs_store: Returns whether something of an append is written to the database.
        idle: Called on the thread when nothing waits, and between two jobs; returns
            after how many seconds it is to be called again. None: there is nothing to
            do then. Never raises.

    Attributes:
        refusal: Why batches fail that need the database; None: they are tried.
    """

    def __init__(
        self,
        work: str,
        loop: asyncio.AbstractEventLoop,
        *,
        commit: Callable[[list[QueuedAppend]], BatchResult],
        wait_for_lock: Callable[[float | None], None],
        faulted: Callable[[BaseException, int], None],
        ended: Callable[[BaseException | None], None],
        committed: Callable[[BatchResult], None],
        failed: Callable[[list[QueuedAppend], BaseException], None],
        died: Callable[[BaseException], None],
        batch: int,
        needs_store: Callable[[Draft, History], bool],
        idle: Callable[[], float] | None = None,
    ) -> None:
        self._work = work
        self._needs_store = needs_store
        self._idle = idle
        self._wait = 0.0 if idle is not None else None  # until `idle` is called
        self._loop = loop
        self._commit = commit
        self._wait_for_lock = wait_for_lock
        self._faulted = faulted
        self._job_ended = ended
        self._committed = committed
        self._failed = failed
        self._died = died
        self._batch = batch
        self._queue: SimpleQueue[list[QueuedAppend] | Job[Any] | None] = SimpleQueue()
        self._turn: list[QueuedAppend] = []  # of this turn of the loop
        self._given: deque[QueuedAppend] = deque()  # to the thread, not begun
        self._reports: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._woken = False
        self._appends: list[QueuedAppend] = []  # being stored
        self._job: Job[Any] | None = None  # being done, or next
        self.refusal: Exception | None = None
        self._decisions: SimpleQueue[float | None] = SimpleQueue()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(
            target=self._main, name=f"store-{work}r", daemon=True
        )

    def start(self) -> None:
        """Begin: from here on the thread calls what it was given."""
        self._thread.start()

    def put(self, append: QueuedAppend) -> None:
        """Queue an append behind what is queued already."""
        turn = self._turn
        if not turn:
            self._loop.call_soon(self._hand_over)
        turn.append(append)

    def _hand_over(self) -> None:
        if self._turn:
            turn, self._turn = self._turn, []
            self._queue.put(turn)

    def submit(self, job: Job[Any]) -> None:
        """Queue a job behind what is queued already."""
        self._hand_over()
        self._queue.put(job)

    def decide(self, wait: float | None) -> None:
        """Answer a report of `faulted`.

        Args:
            wait: Seconds for which the batch, tried again, waits for a lock; None: it
                fails.
        """
        self._decisions.put(wait)

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
            self._job_ended(error)
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
        self._hand_over()
        self._queue.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def tell(self, take: Callable[[T], object], what: T) -> None:
        """Let the event loop call *take* with *what*. On the thread."""
        self._report(take, what)

    # On the thread

    def _next(self) -> Any:
        """Return what comes next in the queue; call `idle` while nothing does."""
        while True:
            try:
                return self._queue.get(timeout=self._wait)
            except Empty:
                assert self._idle is not None
                self._wait = self._idle()

    def _main(self) -> None:
        try:
            item = self._next()
            while item is not None:
                if isinstance(item, Job):
                    self._job = item
                    item.execute()
                    self._job = None
                    self._report(Job.report, item)
                    if self._idle is not None:
                        self._wait = self._idle()
                    item = self._next()
                else:
                    self._given.extend(item)
                    found = self._gather()
                    self._store()
                    while self._given:  # more than a commit has
                        self._fill()
                        self._store()
                    item = self._next() if found is _NOTHING else found
        except BaseException as error:  # whatever it is, nobody may wait for ever
            _log.critical("store thread died", **describe(error))
            self._report(self._fail_rest, error)
        else:
            self._report(self._ended.set_result, None)

    def _gather(self) -> Any:
        """Take the appends of a commit; return what ended them, or `_NOTHING`."""
        get = self._queue.get
        with contextlib.suppress(Empty):
            while not self._fill():
                item = get(False)
                if type(item) is not list:
                    self._job = item  # type: ignore[assignment]  # or None, the end
                    return item
                self._given.extend(item)
        return _NOTHING

    def _fill(self) -> bool:
        """Take what a commit may have of what was given; return whether it is full."""
        appends, given = self._appends, self._given
        size = sum([append[4] for append in appends])
        while len(appends) < self._batch and size < BATCH_BYTES:
            if not given:
                return False
            append = given.popleft()
            appends.append(append)
            size += append[4]
        return True

    def _store(self) -> None:
        """Store `_appends`; one by one, if invalid data of one fails them all."""
        appends, self._appends = self._appends, []
        if self._persist(appends):
            return
        self._appends = appends
        while appends:
            self._persist([appends.pop(0)])

    def _persist(self, appends: list[QueuedAppend]) -> bool:
        """Store a batch or fail it.

        Returns:
            Whether that was done; if not, one of several has invalid data.
        """
        if self.refusal is not None:
            self._refuse(appends, self.refusal)
            if not appends:
                return True
        error = self._try(appends)
        tries = 0
        while error is not None and is_fault(error):
            self._report(self._ask, (error, tries))
            wait = self._decisions.get()
            if wait is None:
                break
            tries += 1
            self._wait_for_lock(wait)
            error = self._try(appends)
        if tries:
            self._wait_for_lock(None)
        if error is None:
            return True
        if is_invalid_data(error) and len(appends) > 1:
            return False
        self._report(self._fail, (appends, error))
        return True

    def _refuse(self, appends: list[QueuedAppend], error: Exception) -> None:
        """Take out what needs the database, and fail it."""
        needs_store = self._needs_store
        refused = [append for append in appends if needs_store(append[1], append[2])]
        if refused:
            appends[:] = [each for each in appends if not needs_store(each[1], each[2])]
            self._report(self._fail, (refused, error))

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

    def _ask(self, fault: tuple[BaseException, int]) -> None:
        self._faulted(*fault)

    def _fail(self, failure: tuple[list[QueuedAppend], BaseException]) -> None:
        self._failed(*failure)

    def _fail_rest(self, error: BaseException) -> None:
        """Fail all that the dead thread leaves. Nobody else takes from the queue."""
        self._died(error)
        self._hand_over()
        appends = [*self._appends, *self._given]
        self._appends = []
        self._given.clear()
        jobs = [self._job] if self._job is not None else []
        with contextlib.suppress(Empty):
            while True:
                item = self._queue.get(False)
                if isinstance(item, Job):
                    jobs.append(item)
                elif item is not None:
                    appends.extend(item)
        self._failed(appends, error)
        for job in jobs:
            job.error = error
            job.report()
        if not self._ended.done():
            self._ended.set_result(None)

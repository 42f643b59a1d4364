"""A thread that does the blocking work, in order, and reports to the event loop.

The loop puts entries and jobs into one queue; the thread takes what waits. Entries
that stand together go into one commit. Everything it has to tell is put on a deque
with at most one wake-up of the loop outstanding.

Invariants:

* What is reported is reported in the order in which it was done.
* Each entry and job is reported exactly once, whatever happens in between. If the
  thread dies, the loop itself empties the queue: it is the only producer, so nothing
  can slip in behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import structlog

from service.core.errors import StoreUnavailable, describe
from service.stores.sqlite.batch import Commit, Entry
from service.stores.sqlite.schema import is_spoilt, reason

__all__ = ["Job", "Worker"]

BATCH_BYTES = 1024 * 1024  # per commit: some milliseconds, which others wait

T = TypeVar("T")
_NOTHING = object()
_log = structlog.get_logger(__name__)


class Job(Generic[T]):
    """Something to do on the thread.

    Args:
        run: Does it, on the thread.
        landed: Called on the event loop with the result and None, or with None and
            what was raised.
    """

    __slots__ = ("error", "landed", "result", "run")

    def __init__(
        self,
        run: Callable[[], T],
        landed: Callable[[T | None, BaseException | None], None],
    ) -> None:
        self.run = run
        self.landed = landed
        self.result: T | None = None
        self.error: BaseException | None = None

    def do(self) -> None:
        """Do it, on the thread."""
        try:
            self.result = self.run()
        except Exception as error:
            self.error = error

    def report(self) -> None:
        """Tell the caller. Event loop only."""
        self.landed(self.result, self.error)


class Worker:
    """One thread and its queue.

    Args:
        work: Of the thread, "write" or "read"; it is named after that.
        loop: Where everything is reported.
        commit: Stores a batch of entries, on the thread; raises if none was stored.
        committed: Takes each `Commit`, on the loop.
        failed: Takes the entries that were not stored and why, on the loop.
        died: Takes what ended the thread, on the loop, before `failed` is given the
            entries that were waiting.
        batch: Entries per commit, at the most.
    """

    def __init__(
        self,
        work: str,
        loop: asyncio.AbstractEventLoop,
        *,
        commit: Callable[[list[Entry]], Commit],
        committed: Callable[[Commit], None],
        failed: Callable[[list[Entry], BaseException], None],
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
        self._queue: SimpleQueue[Entry | Job[Any] | None] = SimpleQueue()
        self._reports: deque[tuple[Callable[[Any], object], Any]] = deque()
        self._woken = False
        self._entries: list[Entry] = []  # being stored
        self._job: Job[Any] | None = None  # being done, or next
        self._stopping = False
        self._refusal: Exception | None = None  # of the batches that are left
        self._ended: asyncio.Future[None] = loop.create_future()
        self.put: Callable[[Entry], None] = self._queue.put  # saves a call for each
        self._thread = threading.Thread(
            target=self._main, name=f"store-{work}r", daemon=True
        )
        self._thread.start()

    def submit(self, job: Job[Any]) -> None:
        """Queue a job behind what is queued already."""
        self._queue.put(job)

    async def do(
        self, run: Callable[[], T], landed: Callable[[T], None] | None = None
    ) -> T:
        """Do something behind what is queued already, and return its result.

        Args:
            run: Does it, on the thread.
            landed: Called with the result even if the caller does not wait any more.

        Raises:
            StoreUnavailable: It was not done, or nobody knows.
        """
        future: asyncio.Future[T] = self._loop.create_future()

        def report(result: Any, error: BaseException | None) -> None:
            if error is None and landed is not None:
                landed(result)
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
                    item.do()
                    self._job = None
                    self._report(Job.report, item)
                    item = self._queue.get()
                else:
                    found = self._gather(item)
                    self._store()
                    item = self._queue.get() if found is _NOTHING else found
        except BaseException as error:  # whatever it is, nobody may wait for ever
            _log.critical("store thread died", **describe(error))
            self._report(self._bury, error)
        else:
            self._report(self._ended.set_result, None)

    def _gather(self, first: Entry) -> Any:
        """Take what waits behind *first*; return what ended it, or `_NOTHING`."""
        entries = self._entries
        entries.append(first)
        size = first[4]
        get = self._queue.get
        with contextlib.suppress(Empty):
            while len(entries) < self._batch and size < BATCH_BYTES:
                item = get(False)
                if type(item) is not tuple:
                    self._job = item  # type: ignore[assignment]  # or None, the end
                    return item
                entries.append(item)
                size += item[4]
        return _NOTHING

    def _store(self) -> None:
        """Store `_entries`; one by one, if one of them spoils it for all."""
        entries, self._entries = self._entries, []
        error = self._refusal or self._try(entries)
        if error is None:
            return
        if not is_spoilt(error) or len(entries) == 1:
            if self._stopping and not is_spoilt(error):
                self._refusal = error  # the rest shall not wait for it again
            self._report(self._fail, (entries, error))
            return
        self._entries = entries
        while entries:
            single = [entries.pop(0)]
            error = self._try(single)
            if error is not None:
                self._report(self._fail, (single, error))

    def _try(self, entries: list[Entry]) -> Exception | None:
        try:
            commit = self._commit(entries)
        except Exception as error:
            return error
        except BaseException:
            self._entries = entries + self._entries
            raise
        self._report(self._committed, commit)
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

    def _fail(self, failure: tuple[list[Entry], BaseException]) -> None:
        self._failed(*failure)

    def _bury(self, error: BaseException) -> None:
        """Fail everything the dead thread leaves. Nobody else takes from the queue."""
        self._died(error)
        entries, self._entries = self._entries, []
        jobs = [self._job] if self._job is not None else []
        with contextlib.suppress(Empty):
            while True:
                item = self._queue.get(False)
                if isinstance(item, Job):
                    jobs.append(item)
                elif item is not None:
                    entries.append(item)
        self._failed(entries, error)
        for job in jobs:
            job.error = error
            job.report()
        if not self._ended.done():
            self._ended.set_result(None)

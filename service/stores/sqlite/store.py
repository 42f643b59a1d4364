"""The Store port on SQLite: one file, one thread that writes, one that reads.

The file is one process's, or shared by several of one machine (`StoreSettings.
shared_by`). Then the writer's thread tells what others have committed, too (see
`news`), in one order with its own commits. Their publications go into the tail cache,
then to the hearer; but memory, which may be behind by some milliseconds, answers only
with publications: what is at the top, and whether there is anything above, is read from
the file. So who was told of a commit by any process finds it in all of them, and a
client whose position was given by another process is not taken for one of the future.

The event loop never touches the database. `append` puts the draft into a queue; the
writer's thread commits all that wait in one transaction and reports the batch. Then, on
the loop, the tail cache is extended, the listener is told, and each `AppendDone` is
called. Reads are answered from the cache or go to the reader's thread, one at a time
per channel however many wait for it.

Invariants:

* A report is handled in one step of the loop, in the order of commits. So whatever runs
  after it, the listener first, finds the cache up to date.
* A caller that was told of a commit is never given the result of a read that started
  before that (see `history_cache`): it waits for the read to end and asks again.
* Each `done` is called exactly once: with the report of its batch, or when a thread
  that died leaves it behind, or by `append` itself, one step of the loop later.
* With a shared file, no read that begins after a commit of any process misses it.
* While the breaker is open, whatever would write fails at once (see `write_guard`).
  Publications that nothing is stored of go on, and so do reads, which another program's
  lock does not hinder. With a shared file, something is stored of all publications.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal, TypeVar

import structlog

from service.core.circuit_breaker import Breaker
from service.core.errors import StoreError, StoreInUse, StoreUnavailable, describe
from service.core.model import Channel, Draft, HistoryPage, Position
from service.core.ports import (
    AppendDone,
    Clock,
    CommitListener,
    Committed,
    Hearer,
    History,
)
from service.settings import StoreSettings
from service.stores.append_budget import AppendBudget
from service.stores.history_cache import (
    InFlightRead,
    ReadRequest,
    SingleFlightReads,
    TailCache,
)
from service.stores.sqlite.channel_state import ChannelStateCache
from service.stores.sqlite.cluster_table import ClusterTable
from service.stores.sqlite.expiry import Blanked, Eraser, Expiry, Sweeper, Swept
from service.stores.sqlite.log import Log
from service.stores.sqlite.news import BLANKED, NOTICE, News, Told
from service.stores.sqlite.read import read_history
from service.stores.sqlite.schema import (
    Files,
    is_invalid_data,
    open_files,
    reason,
)
from service.stores.sqlite.space import Sizes, Space
from service.stores.sqlite.state import SqliteState, StateTable
from service.stores.sqlite.unpublished import Unpublished
from service.stores.sqlite.write_guard import WriteGuard
from service.stores.sqlite.writer import (
    BatchResult,
    Job,
    QueuedAppend,
    StoreThread,
)

__all__ = ["SqliteStore"]

# Of one commit. A larger batch costs those who wait more than it saves: at 512 the
# fixed cost of a commit is 1 % of it.
BATCH = 512  # count

PAUSE = 0.05
"""Seconds between two tries to open a file that another process has open."""

LOOK_AGAIN = 1.0  # s; after a look at what other processes did that has failed

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class SqliteStore:
    """The Store port on a SQLite file, or in memory.

    Args:
        settings: Path, durability and bounds.
        clock: Tells when publications expire, and calls the sweep.
        rng: Makes epochs, and spreads repeats; the system's by default.
        namespaces: Bytes that the publications of a namespace may have; without an
            entry, no limit.
        batch: Publications per commit, at most.
        stopping: Set to give up a start that waits for the file; None for never.

    Attributes:
        backend: As in the settings.
        state: The State port on the same file.
    """

    backend: Literal["sqlite"] = "sqlite"

    def __init__(
        self,
        settings: StoreSettings,
        clock: Clock,
        *,
        rng: random.Random | None = None,
        namespaces: Mapping[str, int] = MappingProxyType({}),
        batch: int = BATCH,
        stopping: asyncio.Event | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._namespaces = namespaces
        self._batch = batch
        self._stopping = stopping or asyncio.Event()
        self._budget = AppendBudget(settings.queue_size)
        self._tails = TailCache(settings.cache_size)
        self._shared_reads = SingleFlightReads(
            self._tails,
            answer=(lambda *_: None) if settings.shared_by else self._answer,
            load=self._load,
            refusal=lambda: None if self._open else self._refusal,
        )
        self._open = False  # accepts calls
        self._refusal = "the store was not started"  # why it does not
        self._dead = False  # a thread is
        self._unpublished: Unpublished | None = None  # for a shared file
        self._followed: dict[Channel, int] = {}  # history sizes
        self._topics: dict[str, list[Callable[[], None]]] = {}  # by those that hear
        self._notifying: set[str] = set()  # notices that wait for the writer
        self._guard = WriteGuard(clock, self._rng, lock_timeout=settings.lock_timeout)
        self._sweeper: Sweeper | None = None
        self._closing: asyncio.Task[None] | None = None
        self.state = SqliteState(clock, write=self._write_state, read=self._read_state)

    @property
    def breaker(self) -> Breaker:
        """The circuit breaker of what writes."""
        return self._guard.breaker

    @property
    def sizes(self) -> Sizes:
        """Bytes that the store takes, as last measured."""
        return self._space.sizes if self._open else Sizes()

    @property
    def queue_used(self) -> float:
        """The part of `store.queue_size` that appends take while they wait."""
        return self._budget.used

    @property
    def reads(self) -> int:
        """Reads of the database so far; each is one snapshot of one channel."""
        return self._shared_reads.count

    async def start(
        self, listener: CommitListener, hearer: Hearer | None = None
    ) -> None:
        """Open the store and begin to serve.

        A process that has the file open is waited for, for `open_timeout` seconds: the
        next server can be started before the one that it takes over from has ended.

        Raises:
            StoreInUse: Another process still has it open.
            StoreCorrupt: The file is damaged, or another program's.
            StoreVersion: A newer program wrote it.
            StartupError: It cannot be opened or created.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._hearer = hearer
        files = await self._open_files()
        self._files: Files = files
        idle = None
        try:
            self._space = await asyncio.to_thread(
                Space, files.writer, self._settings, self._namespaces
            )
            self._channels = ChannelStateCache(
                files.writer, self._rng, self._space, self._settings.lock_timeout
            )
            if self._settings.shared_by:
                idle = await asyncio.to_thread(self._share, files.writer)
            else:
                self._unpublished = await asyncio.to_thread(Unpublished, files.writer)
                self._channels.adding = self._unpublished.mark
        except BaseException:
            files.close()
            raise
        self._log = Log(self._channels)
        self._state_table = StateTable(files.writer)
        self._eraser = Eraser(files.writer)
        expiry = Expiry(self._channels, self._state_table)
        self._writer = self._thread("write", self._wrote, idle)
        self._reader = self._writer
        if files.reader is not files.writer:
            self._reader = self._thread("read", lambda error: None)
        self._put = self._writer.put
        self._guard.start(self._writer, probe=self._log.probe, reopen=self._reopen)
        # Last: the thread may find news at once, and hands them over by this store.
        for thread in {self._writer, self._reader}:
            thread.start()
        self._open = True
        self._refusal = "the store is closed"
        self._sweeper = Sweeper(
            self._clock,
            self._settings.sweep_interval,
            self._writer.submit,
            lambda: self._channels.patiently(lambda: self._sweep(expiry)),
            self._tails.expire,
        )

    def _share(self, connection: sqlite3.Connection) -> Callable[[], float]:
        """Begin to follow other processes; return what the writer's thread calls."""
        connection.execute("BEGIN")  # one snapshot: what is not counted is news
        news = News(
            connection,
            self._clock.now,
            self._now,
            tell=self._heard,
            forget=self._channels.forget,
            freed=self._space.freed,
        )
        self._space.blanked()
        self._space.measure()
        connection.execute("ROLLBACK")
        self._channels.share(news)

        def look() -> float:
            try:
                return news.look()
            except sqlite3.Error as error:
                _log.warning("the store was not looked at", reason=reason(error))
                return LOOK_AGAIN

        return look

    async def _open_files(self) -> Files:
        tries = 1 + int(self._settings.open_timeout / PAUSE)
        for left in reversed(range(tries)):
            try:
                files = await asyncio.to_thread(open_files, self._settings, self._rng)
            except StoreInUse:
                if not left or self._stopping.is_set():
                    raise
                if left == tries - 1:
                    _log.warning(
                        "waiting for the store: another process has it open",
                        path=self._settings.path,
                        seconds=self._settings.open_timeout,
                    )
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PAUSE):
                        await self._stopping.wait()
            else:
                if left < tries - 1:
                    _log.info("the store is free", path=self._settings.path)
                return files
        raise AssertionError("the last try returns or raises")

    def _sweep(self, expiry: Expiry) -> Swept:
        """Make a step of the sweep. On the writer's thread."""
        swept = expiry.step(self._now())
        return swept if swept.more else swept._replace(more=self._space.tidy())

    def _thread(
        self,
        work: str,
        ended: Callable[[BaseException | None], None],
        idle: Callable[[], float] | None = None,
    ) -> StoreThread:
        return StoreThread(
            work,
            self._loop,
            commit=self._commit,
            wait_for_lock=self._wait_for_lock,
            faulted=self._guard.faulted,
            ended=ended,
            committed=self._committed,
            failed=self._failed,
            died=partial(self._died, f"store-{work}r"),
            batch=self._batch,
            needs_store=self._needs_store,
            idle=idle,
        )

    async def close(self) -> None:
        """Commit what was accepted, then release everything. Safe to call twice."""
        if self._closing is None:
            if self._sweeper is None:
                return  # never started
            self._open = False
            self._closing = asyncio.create_task(self._close(self._sweeper))
        await asyncio.shield(self._closing)

    async def _close(self, sweeper: Sweeper) -> None:
        sweeper.stop()
        self._guard.close()
        await self._writer.stop()
        if self._reader is not self._writer:
            await self._reader.stop()
        await self._shared_reads.close()
        await asyncio.to_thread(self._files.close)

    def fault(self) -> str | None:
        """Return why the store cannot serve, in a few words, or None if it can."""
        return self._guard.failing or None if self._open else self._refusal

    # Appending

    def append(
        self, channel: Channel, draft: Draft, history: History, done: AppendDone
    ) -> None:
        """Accept *draft* for commit; never blocks, never raises."""
        error: StoreError
        if not self._open:
            error = StoreUnavailable(self._refusal)
        elif self._guard.failing and self._needs_store(draft, history):
            error = StoreUnavailable(self._guard.failing)
        elif (
            self._space.limited
            and history.size
            and (full := self._space.refusal(channel)) is not None
        ):
            error = full
        elif (cost := self._budget.accept(draft)) is None:
            error = self._budget.full()
        else:
            self._put((channel, draft, history, done, cost))
            return
        asyncio.get_running_loop().call_soon(done, error)

    def _needs_store(self, draft: Draft, history: History) -> bool:
        """Return whether something of an append is written to the database."""
        shared = self._settings.shared_by
        return bool(history.size or draft.idempotency_key or shared)

    def _commit(self, appends: list[QueuedAppend]) -> BatchResult:
        """Store a batch. On the writer's thread."""
        result = self._log.commit(appends, self._now())
        self._measure_commits(result.committed)
        return result

    def _measure_commits(self, committed: Sequence[Committed]) -> None:
        """Count what was committed. On the writer's thread."""
        if self._space.limited:
            # What is committed must not be reported as failed, and tried again.
            try:
                self._space.added(committed)
            except sqlite3.Error as error:
                _log.warning("the store was not measured", reason=reason(error))

    def _wait_for_lock(self, seconds: float | None) -> None:
        """Set how long a commit waits for a lock. On the writer's thread."""
        wait = self._settings.lock_timeout if seconds is None else seconds
        if self._settings.shared_by:
            self._channels.patience = wait
            return
        with contextlib.suppress(sqlite3.Error):  # it waits as long as before
            self._channels.execute(f"PRAGMA busy_timeout = {round(1000 * wait)}")

    def _wrote(self, error: BaseException | None) -> None:
        """Note the end of a write that is not an append."""
        if error is None:
            self._guard.succeeded()
        else:
            self._guard.failed(error)

    def _reopen(self) -> bool:
        """Open the writer's connection anew. On the writer's thread."""
        if not self._files.reopen_writer():
            return False
        connection = self._files.writer
        for part in (self._channels, self._space, self._state_table, self._eraser):
            part.use(connection)
        return True

    def _committed(self, result: BatchResult) -> None:
        if result.stored:
            self._guard.succeeded()
        if result.committed:
            self._tails.extend(result.committed, result.sizes)
            try:
                self._listener(result.committed)
            except Exception as error:
                _log.error("the listener of the store failed", **describe(error))
        release = self._budget.release
        reports = zip(result.appends, result.outcomes, strict=True)
        for (_, _, _, done, cost), outcome in reports:
            release(cost)
            try:
                done(outcome)
            except Exception as error:
                _log.error("the caller of an append failed", **describe(error))

    def _failed(self, appends: list[QueuedAppend], error: BaseException) -> None:
        invalid = False
        if self._dead:
            text = self._refusal
        elif isinstance(error, StoreError):
            text = str(error)
        else:
            invalid = is_invalid_data(error)
            text = f"the store cannot write: {reason(error)}"
        for _, _, _, done, cost in appends:
            self._budget.release(cost)
            # One for each: an exception that is raised twice mixes its tracebacks.
            outcome = (
                StoreError(f"cannot be stored: {reason(error)}")
                if invalid
                else StoreUnavailable(text)
            )
            try:
                done(outcome)
            except Exception as fault:
                _log.error("the caller of an append failed", **describe(fault))

    def _died(self, name: str, error: BaseException) -> None:
        self._open = False
        self._dead = True
        self._refusal = f"thread {name} died: {reason(error)}"
        self._guard.close()

    # Reading

    def knows(self, channel: Channel) -> bool:
        """Tell from memory whether the channel has had a publication."""
        position = self._tails.position(channel)
        return position is not None and position.offset > 0

    def peek(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage | None:
        """Answer `read` from memory, or return None when that is not possible."""
        if not self._open:
            return None
        request = ReadRequest(history.size, history.ttl, since, limit, False)
        page = self._answer(channel, request)
        if self._settings.shared_by and page is not None and not page.publications:
            return None
        return page

    async def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        *,
        reverse: bool = False,
    ) -> HistoryPage:
        """Read kept publications and the top; see the port.

        Raises:
            StoreUnavailable: The database cannot be read, or the store is closed.
        """
        request = ReadRequest(history.size, history.ttl, since, limit, reverse)
        return await self._shared_reads.read(channel, request)

    def _answer(self, channel: Channel, request: ReadRequest) -> HistoryPage | None:
        page = self._tails.answer(channel, request, self._now())
        if page is None and self._unpublished is not None:
            return self._unpublished.page(channel)
        return page

    async def _load(
        self, channel: Channel, read: InFlightRead
    ) -> dict[ReadRequest, HistoryPage]:
        run = partial(
            read_history, self._files.reader, channel, read.requests, self._now()
        )
        tail, pages = await self._reader.do(run)
        # Before the tail is cached: the cache may drop some of it.
        answers = tail.answer_rest(read.requests, pages, self._now())
        self._tails.fill(channel, tail, read)
        return answers

    # Hearing of what other processes do

    def follow(self, channel: Channel, history: History) -> None:
        """Hear what others publish to a channel, and keep it in memory.

        Of a shared file all is heard, but only this is kept.
        """
        self._followed[channel] = history.size

    def unfollow(self, channel: Channel) -> None:
        """Keep it in memory no more."""
        self._followed.pop(channel, None)

    def told(self, batch: Sequence[Committed]) -> None:
        """Take note of what other processes committed, then tell the hearer."""
        kept: list[Committed] = []
        sizes: dict[Channel, int] = {}
        for one in batch:
            if not one.publication.offset:
                continue
            if size := self._followed.get(one.channel):
                kept.append(one)
                sizes[one.channel] = size
            else:
                self._tails.blank(one.channel)
        self._tails.extend(kept, sizes)
        if self._hearer is not None:
            self._hearer.told(batch)

    def moved(self, channel: Channel, top: Position) -> None:
        """Take note that other processes have moved a top, then tell the hearer."""
        self._tails.blank(channel)
        if self._hearer is not None:
            self._hearer.moved(channel, top)

    def _heard(self, told: Told) -> None:
        """Hand over what other processes did. On the writer's thread."""
        self._measure_commits(told.committed)
        self._writer.tell(self._take, told)

    def _take(self, told: Told) -> None:
        """Take what other processes did. On the event loop."""
        news = self._channels.news
        assert news is not None
        news.taken()
        if told.lost:
            self._tails.forget_all()
        # First: what is out of date then is dropped, and not the other way round.
        self.told(told.committed)
        for channel, top in told.removed:
            self.moved(channel, top)
        for channel in told.blanked:
            self._tails.blank(channel)
        if told.expired:
            self._tails.expire(told.expired)
        for topic in told.notices:
            self._notice(topic)
        if told.lost:
            for topic in self._topics:
                self._notice(topic)

    def notify(self, topic: str) -> None:
        """Tell all processes that hear *topic*, this one too, to look now.

        Where to look, the topic says; what they find is in the store. It is lost if it
        cannot be written.
        """
        self._notice(topic)
        if not self._settings.shared_by or not self._open or topic in self._notifying:
            return
        self._notifying.add(topic)

        def write() -> None:
            self._notifying.discard(topic)  # what is notified from now on is not in it
            with self._channels.transaction():
                self._channels.tell(NOTICE, topic)

        self._writer.submit(Job(write, lambda _, error: self._wrote(error)))

    def hear(self, topic: str, heard: Callable[[], None]) -> None:
        """Call *heard* at each notice of *topic*, and whenever some may be lost."""
        self._topics.setdefault(topic, []).append(heard)

    def _notice(self, topic: str) -> None:
        for heard in self._topics.get(topic, ()):
            try:
                heard()
            except Exception as error:
                _log.error("a notice was not taken", **describe(error))

    # Removing and erasing

    async def remove(self, channel: Channel) -> None:
        """Delete a channel's publications; its top and epoch stay.

        Raises:
            StoreUnavailable: Nothing was removed, or nobody knows.
        """

        def removed(top: Position | None) -> None:
            if top is not None:
                self._tails.clear(channel, top.offset, top.epoch)

        def remove() -> Position | None:
            top = self._log.remove(channel)
            self._measure()
            return top

        await self._write(remove, removed)

    async def erase(self, info: str) -> int:
        """Blank every publication whose ``info`` begins with *info*; see the port.

        Raises:
            StoreUnavailable: Some may be left.
        """
        bound = await self._write(lambda: self._eraser.newest())
        count = last = 0
        while last < bound:
            done = await self._write(
                partial(self._erase_step, info, last, bound), self._blanked
            )
            last = done.last
            count += done.blanked
        # Not in one job: what waits in between may be the end of another erasure.
        number = await self._write(self._eraser.end)
        await self._write(lambda: self._rewrite(number))
        return count

    def _erase_step(self, info: str, after: int, bound: int) -> Blanked:
        """Blank some publications. On the writer's thread."""
        if self._channels.news is None:
            done = self._eraser.step(info, after, bound)
        else:
            with self._channels.transaction():
                done = self._eraser.step(info, after, bound)
                for channel in done.channels:
                    self._channels.tell(BLANKED, channel)
        if done.blanked:
            self._space.blanked()
        return done

    def _rewrite(self, number: int) -> None:
        """End an erasure. On the writer's thread."""
        if self._channels.news is None:
            self._eraser.rewrite(number)
        else:
            self._channels.waiting(lambda: self._eraser.rewrite(number))
        self._measure()

    def _measure(self) -> None:
        """Measure the store after what is done in any case. On the writer's thread."""
        try:
            self._space.measure()
        except sqlite3.Error as error:
            _log.warning("the store was not measured", reason=reason(error))

    def _blanked(self, blanked: Blanked) -> None:
        for channel in blanked.channels:
            self._tails.blank(channel)

    async def _write(
        self, run: Callable[[], T], done: Callable[[T], None] | None = None
    ) -> T:
        if not self._open:
            raise StoreUnavailable(self._refusal)
        if self._guard.failing:
            raise StoreUnavailable(self._guard.failing)
        return await self._writer.do(lambda: self._channels.patiently(run), done)

    # For the State port

    async def _write_state(self, run: Callable[[StateTable], T]) -> T:
        return await self._write(lambda: run(self._state_table))

    async def write_cluster(self, run: Callable[[ClusterTable], T]) -> T:
        """Change the tables of the processes of this file (`cluster`).

        Raises:
            StoreUnavailable: It was not done, or nobody knows.
        """
        return await self._write(lambda: run(ClusterTable(self._files.writer)))

    async def read_cluster(self, run: Callable[[ClusterTable], T]) -> T:
        """Read the tables of the processes of this file.

        Raises:
            StoreUnavailable: They cannot be read.
        """
        if not self._open:
            raise StoreUnavailable(self._refusal)
        return await self._reader.do(lambda: run(ClusterTable(self._files.reader)))

    async def _read_state(self, run: Callable[[StateTable], T]) -> T:
        if not self._open:
            raise StoreUnavailable(self._refusal)
        return await self._reader.do(lambda: run(StateTable(self._files.reader)))

    def _now(self) -> int:
        """Return Unix milliseconds."""
        return int(self._clock.wall() * 1000)

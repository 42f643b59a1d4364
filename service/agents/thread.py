"""One thread in this process: its fold, kept up to date from the store, and viewers.

A thread is a channel of the namespace of threads. Its events are the publications of
that channel, of which the history keeps a window. So that the whole thread is known,
the process that has a live run of it stores *segments*: the events since the last one,
compacted, as publications of a channel beside it that no client can name
(`segments_of`). A segment is due when half of the window has passed or `SEGMENT_SIZE`
bytes have come together, and at the end of each run; while one that is due cannot be
stored, the run waits before the window would pass it (`has_room`).

The fold is what the segments and the log after them add up to.

Invariants, all on the event loop:

T1 The fold takes each offset once, in order: a commit that is not the next offset is
   left to the next `refresh`, and a page's publications that are in it are passed over.
T2 What is read is whole: where neither segments nor log have an event, the fold says
   that it is not complete, and goes on after it.
T3 Segments do not overlap: one is stored at a time, with its last offset as the version
   of the draft, and one that begins before the fold's offset is passed over.

Interleavings that could break them, each a test in tests/agents/test_thread.py: a
commit while a page is being read (T1); a segment whose store fails, or is slow, while
the run goes on (T2); two processes that store the same part (T3); a history that was
trimmed between a segment and the next read (T2).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from service.agents.events import AgentEvent, read_event
from service.agents.fold import THREAD_SIZE, Fold, Snapshot
from service.core.clock import sleep
from service.core.errors import StoreError
from service.core.model import Appended, Channel, Draft, HistoryPage, RawJson
from service.core.ports import Clock, History, Store
from service.core.waiter import Waiter

__all__ = ["Thread", "segments_of"]

SEGMENT_SIZE = 64 * 1024  # bytes in memory at which a segment is due
SEGMENTS = 10_000  # of a thread (count)
_PIECE = 256  # publications read at once (count)
_RETRIES = (0.1, 0.3, 1.0, 3.0)  # s between attempts to store a segment, the last again


def segments_of(channel: Channel) -> Channel:
    """Return the channel of a thread's segments; its namespace has no name."""
    return Channel(f":{channel}")


class _Segment(NamedTuple):
    upto: int
    text: RawJson
    info: RawJson | None


class Thread:
    """A thread.

    Args:
        name: The thread's id.
        channel: Its channel.
        history: What the store keeps of it.
        store: The store.
        clock: Times attempts.
        spawn: Runs a coroutine in the background.

    Attributes:
        users: Runs and viewers that hold it in memory.
        starting: Held while a run is started.
    """

    def __init__(
        self,
        name: str,
        channel: Channel,
        history: History,
        store: Store,
        clock: Clock,
        spawn: Callable[[Awaitable[None]], object],
    ) -> None:
        self.name = name
        self.channel = channel
        self.history = history
        self.users = 0
        self.starting = asyncio.Lock()
        self._segments = segments_of(channel)
        self._kept = History(SEGMENTS, history.meta_ttl, history.meta_ttl)
        self._store = store
        self._clock = clock
        self._spawn = spawn
        self._lock = asyncio.Lock()
        self._fold: Fold | None = None
        self._stale = False
        self._keeps = 0  # segments that were cut
        self._waiting: deque[_Segment] = deque()  # the first is being stored
        self._stored_upto = 0  # while some wait
        self._storing = False
        self._stored = asyncio.Event()
        self._stored.set()

    @property
    def fold(self) -> Fold:
        """The fold; `refresh` has been called before."""
        if self._fold is None:
            raise AssertionError("a thread is read before it is used")
        return self._fold

    @property
    def size(self) -> int:
        """Bytes that it takes in memory."""
        if self._fold is None:
            return 0
        return self._fold.transcript.size + self._fold.segment.size

    # The fold.

    async def refresh(self) -> list[tuple[int, AgentEvent | None]]:
        """Read what the log has above the fold, and take it in.

        Returns:
            The events that were new.

        Raises:
            StoreError: The read failed; the fault is transient.
        """
        async with self._lock:
            if self._fold is None or self._stale:
                self._fold = await self._load()
            return await self._read(self._fold)

    def forget(self) -> None:
        """Read all anew next time: something was erased."""
        self._stale = True

    def committed(self, offset: int, event: AgentEvent) -> None:
        """Take in an event that this process has stored."""
        fold = self._fold
        if fold is not None and offset == fold.offset + 1:
            fold.take(offset, event)

    async def _load(self) -> Fold:
        while True:
            self._stale = False
            await self._stored.wait()
            keeps = self._keeps
            top = (await self._store.read(self.channel, self.history, None, 0)).top
            fold = Fold(self.name, top.epoch)
            for text in await self._read_segments():
                fold.take_segment(text)
            if keeps == self._keeps and not self._stale:
                return fold

    async def _read_segments(self) -> list[str]:
        """Return the newest segments that may fit into memory, in order."""
        found: list[str] = []
        size, since = 0, None
        while size < THREAD_SIZE:
            page = await self._store.read(
                self._segments, self._kept, since, _PIECE, reverse=True
            )
            if not page.publications:
                break
            found += [publication.data for publication in page.publications]
            size += sum(len(publication.data) for publication in page.publications)
            since = page.publications[-1].offset
            if since == 1:
                break
        return found[::-1]

    async def _read(self, fold: Fold) -> list[tuple[int, AgentEvent | None]]:
        new: list[tuple[int, AgentEvent | None]] = []
        while True:
            page = await self._page(fold.offset)
            if page.top.epoch != fold.epoch:
                self._fold = fold = await self._load()
                continue
            for publication in page.publications:
                offset = publication.offset
                if offset <= fold.offset:
                    continue
                if offset > fold.offset + 1:
                    fold.skip(offset - 1)
                event = read_event(publication.data)
                fold.take(offset, event)
                new.append((offset, event))
            if page.top.offset <= fold.offset:
                return new
            if not page.publications:
                fold.skip(page.top.offset)  # trimmed

    async def _page(self, since: int) -> HistoryPage:
        return await self._store.read(self.channel, self.history, since, _PIECE)

    async def snapshot(self) -> Snapshot:
        """Return the thread, compacted, with every event that was stored before.

        Raises:
            StoreError: The read failed; the fault is transient.
        """
        await self.refresh()
        return self.fold.snapshot()

    async def prelude(self) -> Snapshot:
        """Return the begin of a stream that goes on after the newest event.

        Raises:
            StoreError: The read failed; the fault is transient.
        """
        await self.refresh()
        return self.fold.prelude()

    # Segments.

    def has_room(self, count: int) -> bool:
        """Whether *count* more events leave what is not in segments in the history."""
        stored = self._stored_upto if self._waiting else self.fold.kept
        return self.fold.offset - stored + count < self.history.size

    def keep(self, *, now: bool, info: RawJson | None = None) -> None:
        """Store a segment if one is due.

        Args:
            now: It is due, whatever its size.
            info: Who the segment is of, if it is one user's.
        """
        fold = self.fold
        since = fold.offset - fold.kept
        due = since * 2 >= self.history.size or fold.segment.size >= SEGMENT_SIZE
        if not since or not (now or due):
            return
        if not self._waiting:
            self._stored_upto = fold.kept
        self._waiting.append(_Segment(fold.offset, fold.make_segment(), info))
        fold.cut_segment()
        self._keeps += 1
        self._stored.clear()
        if not self._storing:
            self._storing = True
            self._spawn(self._store_segments())

    async def kept(self) -> None:
        """Wait until the segments that were due are stored."""
        await self._stored.wait()

    async def _store_segments(self) -> None:
        attempt = 0
        try:
            while self._waiting:
                segment = self._waiting[0]
                try:
                    await self._append(segment)
                except StoreError:
                    delay = _RETRIES[min(attempt, len(_RETRIES) - 1)]
                    attempt += 1
                    await sleep(self._clock, delay)
                    continue
                attempt = 0
                self._waiting.popleft()
                self._stored_upto = segment.upto
        finally:
            self._storing = False
            self._stored.set()

    async def _append(self, segment: _Segment) -> None:
        draft = Draft(segment.text, info=segment.info, version=segment.upto)
        waiter: Waiter[Appended] = Waiter()
        self._store.append(self._segments, draft, self._kept, waiter.done)
        await waiter.future

"""Threads of this process: runs that are started, found, cancelled and ended.

Each process looks at the entries of live runs (`service.agents.live_runs`) every
`ROUND` seconds where several share a store, and once at its start in any case. A run is
*orphaned* when no process that lives writes it, this one included. It then gets its
RUN_ERROR ``agent_lost``: at once, or where the agent pushes its events and may come
back to any process, when it has not come within the lease. Versions
(`service.agents.writer`) see to it that there is one terminal event, whoever else does
the same. A writer whose run has gone to another process, with its agent, steps aside.

Subscribers of a thread whose run another process writes are brought up to date every
second: their channels' positions are checked then, and not at the hub's own pace.

Bounds: `RUNS` live runs, `MEMORY` bytes of threads; a start beyond is refused with
``too_many_runs``. Threads that nobody uses stay in memory up to `IDLE_MEMORY` bytes.

Interleavings, each a test in tests/agents/test_threads.py: two starts of a thread at
once, of one run or of two, in one process and in two; a process that dies between the
entry and the start, between the start and the terminal event, and between that and the
taking of the entry; a process that was thought to be dead and goes on; a start whose
caller is cancelled, and one that is under way when the process closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import structlog

from service.agents.errors import Refused, RunExists
from service.agents.events import EVENT_SIZE, AgentEvent, dump, parse_event
from service.agents.feed import Feed, Follower
from service.agents.live_runs import LiveRun, LiveRuns, Writes
from service.agents.models import load_models
from service.agents.thread import Thread, segments_of
from service.agents.writer import AGENT_LOST, LAST, RunWriter, version_of
from service.core.errors import (
    BAD_REQUEST,
    NOT_AVAILABLE,
    ReplyError,
    StoreError,
    describe,
)
from service.core.model import Appended, Channel, Draft, Position, RawJson
from service.core.ports import Clock, History, State, Store, Timer
from service.core.priority import Priority
from service.core.waiter import Waiter
from service.hub.hub import Hub
from service.settings import ChannelOptions

__all__ = ["KEEP_ALIVE", "Threads"]

log = structlog.get_logger("steadwire")


RUNS = 2000  # live runs of this process (count)
MEMORY = 512 * 1024 * 1024  # bytes of threads in memory
IDLE_MEMORY = 64 * 1024 * 1024  # bytes of those that nobody uses
ROUND = 5.0  # s between looks at the entries
KEEP_ALIVE = 4.0
"""Seconds without an event of a live run after which its viewers get a keep-alive. They
are looked at every second, so no gap is longer than 5."""

_RUN_ID = 500  # bytes of a run's id
_KEEP_ALIVE = dump(
    {"type": "CUSTOM", "name": "steadwire.keepalive", "value": None}
).text


class SharedStore(Store, Protocol):
    """A store with its state."""

    @property
    def state(self) -> State:
        """The state that all processes of the store share."""


class Threads:
    """The threads and the live runs of this process.

    Args:
        store: Holds the log, and the entries of live runs.
        hub: Delivers.
        clock: Of every timer.
        spawn: Runs a coroutine in the background.
        node: This process, new with each start.
        namespace: The namespace of threads; "" switches runs off.
        options: The namespace's options.
        lease: Seconds of silence after which an agent that pushes is lost.
        shared: Whether other servers use the store.
        event_size: Bytes of an event at most.
    """

    def __init__(
        self,
        store: SharedStore,
        hub: Hub,
        clock: Clock,
        spawn: Callable[[Awaitable[None]], object],
        *,
        node: str,
        namespace: str,
        options: ChannelOptions,
        lease: float,
        shared: bool,
        event_size: int = EVENT_SIZE,
    ) -> None:
        self.lease = lease
        self._store = store
        self._live = LiveRuns(store.state, clock, node, shared=shared)
        self._hub = hub
        self._clock = clock
        self._spawn = spawn
        self._namespace = namespace
        self._history = History(
            options.history_size, options.history_ttl, options.history_meta_ttl
        )
        self._shared = shared
        self._event_size = event_size
        self._threads: dict[Channel, Thread] = {}  # the least recently used first
        self._feeds: dict[Channel, Feed] = {}
        self._writers: dict[Channel, RunWriter] = {}
        self._beginning: set[asyncio.Task[RunWriter]] = set()
        self._busy: set[Channel] = set()
        self._waiting: dict[Channel, float] = {}  # agents that may come back, until
        # Channels of the runs that other processes write, as of the last two rounds.
        self._elsewhere: set[Channel] = set()
        self._elsewhere_before: set[Channel] = set()
        self._broken: dict[Channel, str] = {}  # runs that a fault has ended, by thread
        self._timer: Timer | None = None
        self._looked_at = float("-inf")
        self._looking = False
        self._closing = False

    # The life of the process.

    def start_rounds(self) -> None:
        """Begin to look after runs, those of processes before this one first."""
        if self._namespace:
            self._tick()

    async def close(self) -> None:
        """End the runs that live in this process alone, and stop.

        An agent that pushes may go on at another process, or at the next.
        """
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        while self._beginning or self._writers:
            writers = tuple(self._writers.values())
            for writer in writers:
                if writer.pushed:
                    writer.leave()
                else:
                    writer.lose()
            if self._beginning:
                await asyncio.wait(self._beginning)
            for writer in writers:
                await writer.ended.wait()

    # Threads.

    @property
    def memory(self) -> int:
        """Bytes of the threads in memory."""
        return sum(thread.size for thread in self._threads.values())

    def channel_of(self, thread: str) -> Channel:
        """Return the channel of a thread.

        Raises:
            ReplyError: 108 if runs are switched off, 107 if the id cannot be one.
        """
        if not self._namespace:
            raise ReplyError(NOT_AVAILABLE)
        channel = f"{self._namespace}:{thread}"
        if not thread or len(channel) > 255 or not thread.isascii():
            raise ReplyError(BAD_REQUEST)
        return Channel(channel)

    def thread_of(self, channel: str) -> str | None:
        """Return the id of the thread that a channel is, None if it is none."""
        name, colon, thread = channel.partition(":")
        return thread if colon and name == self._namespace and name else None

    async def open(self, thread: str) -> Thread:
        """Return a thread with everything that was stored before the call.

        Raises:
            ReplyError: As `channel_of`.
            StoreError: The read failed; the fault is transient.
        """
        found = self._thread(self.channel_of(thread), thread)
        await found.refresh()
        return found

    def follow(self, thread: Thread, after: Position) -> Follower:
        """Return a viewer's cursor after a position; its owner closes it."""
        feed = self._feeds.get(thread.channel)
        if feed is None:
            feed = self._feeds[thread.channel] = Feed(thread, self._hub, self._unfed)
            thread.users += 1
        return Follower(
            thread, after, feed, self._store, self._clock, shared=self._shared
        )

    def writer(self, thread: str) -> RunWriter | None:
        """Return the writer of a thread's live run, if this process has it."""
        return self._writers.get(self.channel_of(thread))

    async def remove(self, channel: Channel) -> None:
        """Remove what is kept of a thread beside its history; other channels have none.

        Raises:
            StoreError: Some may be left; the fault is transient: repeat the call.
        """
        if self.thread_of(channel) is None:
            return
        await self._store.remove(segments_of(channel))
        if channel in self._threads:
            self._threads[channel].forget()

    def forget(self) -> None:
        """Read threads anew: publications were erased or removed."""
        for thread in self._threads.values():
            thread.forget()

    def _thread(self, channel: Channel, name: str) -> Thread:
        thread = self._threads.pop(channel, None)
        if thread is None:
            thread = Thread(
                name, channel, self._history, self._store, self._clock, self._spawn
            )
        self._threads[channel] = thread
        return thread

    def _unfed(self, thread: Thread) -> None:
        self._feeds.pop(thread.channel, None)
        self._release(thread)

    def _release(self, thread: Thread) -> None:
        """Take note that a user of a thread is gone, and forget what is too much."""
        thread.users -= 1
        idle = [each for each in self._threads.values() if not each.users]
        size = sum(each.size for each in idle)
        for each in idle:
            if size <= IDLE_MEMORY and len(idle) <= RUNS:
                break
            size -= each.size
            del self._threads[each.channel]

    # Starting.

    async def start(
        self,
        thread: str,
        run: str,
        *,
        writes: Writes,
        agent: str = "",
        messages: Sequence[Mapping[str, Any]] = (),
        started: str | bytes | None = None,
        info: RawJson | None = None,
        lease: float | None = None,
    ) -> RunWriter:
        """Start a run: store its RUN_STARTED, and return its writer.

        Args:
            thread: The thread's id.
            run: The run's id.
            writes: Who writes it.
            agent: The agent's name in the settings, "" for none.
            messages: Those of the input. Those that are new in the thread are stored
                with the RUN_STARTED, and so reach everybody who views it.
            started: The agent's own RUN_STARTED, in place of one that is made here.
            info: Who started it, as JSON of a `ClientInfo`, for erasure and viewers.
            lease: Seconds of silence after which the agent is lost; 0 for none, None
                for `lease` of the settings if the agent pushes.

        Raises:
            RunExists: It was started before, here or elsewhere: nothing is started.
            Refused: ``thread_busy``, ``too_many_runs``, or as `RunWriter.put`.
            ReplyError: As `channel_of`.
            StoreError: The store has a fault. If the run was stored nevertheless, it
                is ended as lost.
            AgentsMissing: The protocol's package is not installed.
        """
        channel = self.channel_of(thread)
        await load_models()
        if lease is None:
            lease = self.lease if writes == "push" else 0.0
        found = self._thread(channel, thread)

        def begin() -> Coroutine[Any, Any, RunWriter]:
            return self._start(
                found, run, writes, agent, messages, started, info, lease
            )

        task = self._begin(found, begin)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if writes != "push":  # else the agent comes back, or its lease ends
                task.add_done_callback(_cancel)
            raise

    def _begin(
        self, thread: Thread, begin: Callable[[], Coroutine[Any, Any, RunWriter]]
    ) -> asyncio.Task[RunWriter]:
        """Let a run begin; it does so whether or not somebody waits for it."""
        thread.users += 1

        async def work() -> RunWriter:
            try:
                async with thread.starting:
                    return await begin()
            except BaseException:
                self._release(thread)
                raise

        task = asyncio.create_task(work())
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)
        return task

    async def _start(
        self,
        thread: Thread,
        run: str,
        writes: Writes,
        agent: str,
        messages: Sequence[Mapping[str, Any]],
        started: str | bytes | None,
        info: RawJson | None,
        lease: float,
    ) -> RunWriter:
        await thread.refresh()
        self._check(thread, run)
        self._check_space()
        if started is not None:
            event = parse_event(started, self._event_size)
        else:
            event = _run_started(thread, run, messages)
            parse_event(event.text, self._event_size)
        if event.type != "RUN_STARTED" or event.fields["runId"] != run:
            raise Refused("wrong_order", "a run begins with its RUN_STARTED")
        if event.fields["threadId"] != thread.name:
            raise Refused("wrong_order", "threadId is another thread's")
        if self._closing:
            raise Refused("too_many_runs", "the server is shutting down")
        if len(run.encode("utf-8", "surrogatepass")) > _RUN_ID or not run:
            raise Refused("invalid_event", f"a runId has 1 to {_RUN_ID} bytes")
        self._busy.add(thread.channel)  # no round ends it meanwhile
        try:
            await self._live.put(thread.channel, run, writes, agent)
            for _ in range(3):
                offset = thread.fold.offset + 1
                outcome = await self._append(
                    thread,
                    Draft(
                        event.text,
                        info=info,
                        version=version_of(offset, 0),
                        urgent=True,
                    ),
                )
                if outcome.fresh:
                    break
                await thread.refresh()
                self._check(thread, run)
            else:
                raise Refused("thread_busy", "other runs start in this thread")
            thread.committed(outcome.position.offset, event)
            if thread.fold.offset != outcome.position.offset:
                await thread.refresh()
        except Refused:
            await self._live.drop(thread.channel, run)
            raise
        except StoreError:
            self._look_again()  # what was stored all the same is ended
            raise
        finally:
            self._busy.discard(thread.channel)
        thread.keep(now=info is not None, info=info)
        return self._write(thread, run, lease, pushed=writes == "push")

    def _check(self, thread: Thread, run: str) -> None:
        known = thread.fold.runs.get(run)
        if known is not None:
            raise RunExists(run, known.start, live=not known.end)
        if thread.fold.live:
            raise Refused("thread_busy", "another run of the thread is live")

    def _check_space(self) -> None:
        if len(self._writers) >= RUNS:
            raise Refused("too_many_runs", f"{RUNS} runs are live here")
        if self.memory > MEMORY:
            raise Refused("too_many_runs", "threads take all of their memory")

    async def resume(
        self, thread: str, run: str, *, lease: float | None = None
    ) -> RunWriter:
        """Return the writer of a live run whose agent pushes, wherever it was before.

        Raises:
            Refused: ``run_unknown``: no such run lives.
            ReplyError: As `channel_of`.
            StoreError: The store has a fault.
            AgentsMissing: The protocol's package is not installed.
        """
        channel = self.channel_of(thread)
        await load_models()
        found = self._thread(channel, thread)

        async def begin() -> RunWriter:
            writer = self._writers.get(channel)
            if writer is None or writer.run != run or writer.over:
                return await self._resume(found, run, lease)
            self._release(found)
            return writer

        return await asyncio.shield(self._begin(found, begin))

    async def _resume(self, thread: Thread, run: str, lease: float | None) -> RunWriter:
        await thread.refresh()
        if self._broken.get(thread.channel) == run:
            raise Refused("run_lost", "the run was ended by a fault")
        if thread.fold.live != run:
            raise Refused("run_unknown", f"no run {run[:64]!r} lives in the thread")
        await self._live.put(thread.channel, run, "push")
        if self._shared:
            await self._live.drop_others(thread.channel, run)
        self._waiting.pop(thread.channel, None)
        lease = self.lease if lease is None else lease
        return self._write(thread, run, lease, pushed=True)

    def _write(
        self, thread: Thread, run: str, lease: float, *, pushed: bool
    ) -> RunWriter:
        writer = self._writers[thread.channel] = RunWriter(
            thread,
            run,
            lease=lease,
            clock=self._clock,
            spawn=self._spawn,
            append=lambda draft, done: self._hub.publish(
                thread.channel, draft, thread.history, done
            ),
            event_size=self._event_size,
            pushed=pushed,
            finished=self._finished,
        )
        return writer

    async def of_run(self, agent: str, run: str) -> list[str]:
        """Return the threads in which an agent's run of this id may live, anywhere.

        Raises:
            StoreError: The store has a fault.
        """
        channels = await self._live.channels(agent, run)
        names = [self.thread_of(channel) for channel in channels]
        return [name for name in names if name is not None]

    async def cancel(self, thread: str, run: str) -> bool:
        """Cancel a run, wherever it is written; one of another server within 5 s.

        Returns:
            Whether it lived.

        Raises:
            ReplyError: As `channel_of`.
            StoreError: The store has a fault.
        """
        channel = self.channel_of(thread)
        writer = self._writers.get(channel)
        if writer is not None and writer.run == run:
            return writer.cancel()
        found = await self.open(thread)
        if found.fold.live != run:
            return False
        await self._live.ask_to_cancel(channel, run)
        return True

    # Ends.

    def _finished(self, writer: RunWriter, ended: bool) -> None:
        channel = writer.thread.channel
        if self._writers.get(channel) is writer:
            del self._writers[channel]
        if ended:
            self._busy.add(channel)
            self._spawn(self._forget_run(writer))
        elif writer.stepped_aside:
            self._release(writer.thread)
        else:
            self._broken[channel] = writer.run
            self._release(writer.thread)
            self._looked_at = float("-inf")  # the next round ends it, if nobody has

    async def _forget_run(self, writer: RunWriter) -> None:
        thread = writer.thread
        try:
            await thread.kept()
            await self._live.drop(thread.channel, writer.run)
        except StoreError:
            self._look_again()  # the next round finds that it is over
        finally:
            self._busy.discard(thread.channel)
            self._release(thread)

    async def _end_lost(self, channel: Channel, run: str) -> None:
        """Give an orphaned run its terminal event, unless it has one."""
        name = self.thread_of(channel)
        if name is None:
            await self._live.drop_all(channel, run)
            return
        thread = self._thread(channel, name)
        thread.users += 1
        try:
            await thread.refresh()
            if thread.fold.live == run:
                message, code = AGENT_LOST
                event = dump({"type": "RUN_ERROR", "message": message, "code": code})
                version = version_of(thread.fold.runs[run].start, LAST)
                await self._append(
                    thread, Draft(event.text, version=version, urgent=True)
                )
                await thread.refresh()
            thread.keep(now=True)
            await thread.kept()
            await self._live.drop_all(channel, run)
        finally:
            self._release(thread)

    async def _append(self, thread: Thread, draft: Draft) -> Appended:
        waiter: Waiter[Appended] = Waiter()
        self._hub.publish(thread.channel, draft, thread.history, waiter.done)
        return await waiter.future

    # Rounds.

    def _tick(self) -> None:
        if self._closing:
            return
        now = self._clock.now()
        self._timer = self._clock.call_at(now + 1.0, self._tick)
        for channel, writer in self._writers.items():
            if now - writer.told_at >= KEEP_ALIVE:
                writer.told_at = now
                self._keep_alive(channel)
        for channel in self._elsewhere | self._elsewhere_before:
            self._hub.position_check.check(channel)
        first = self._looked_at == float("-inf")
        due = first or (self._shared and now - self._looked_at >= ROUND)
        if due and not self._looking:
            self._looked_at = now
            self._looking = True
            self._spawn(self._look())

    def _keep_alive(self, channel: Channel) -> None:
        self._hub.notify(channel, _KEEP_ALIVE, priority=Priority.PUBLICATION)

    async def _look(self) -> None:
        try:
            await self._round()
        except StoreError:
            self._looked_at = self._clock.now() - ROUND + 1.0  # again soon
            if not self._shared:
                self._looked_at = float("-inf")
        except Exception as error:
            log.error("the round of agent runs failed", **describe(error))
        finally:
            self._looking = False

    async def _round(self) -> None:
        if self._writers:
            await self._live.sign()
        lives = await self._live.read()
        self._elsewhere_before = self._elsewhere
        self._elsewhere = {live.channel for live in lives if live.elsewhere}
        for live in lives:
            writer = self._writers.get(live.channel)
            if writer is not None and writer.run == live.run:
                await self._check_own(writer, live)
            elif live.channel in self._busy:
                continue
            elif live.elsewhere:
                self._keep_alive(live.channel)
            else:
                await self._orphan(live)

    async def _check_own(self, writer: RunWriter, live: LiveRun) -> None:
        if live.elsewhere and not live.here:
            writer.step_aside()
        elif live.cancelled:
            await self._live.cancel_is_done(live.channel)
            writer.cancel()

    async def _orphan(self, live: LiveRun) -> None:
        channel = live.channel
        broken = self._broken.get(channel) == live.run
        if live.pushed and not broken:
            until = self._waiting.setdefault(channel, self._clock.now() + self.lease)
            if self._clock.now() < until:
                if not self._shared:
                    self._clock.call_at(until, self._look_again)
                return
            self._waiting.pop(channel, None)
        await self._end_lost(channel, live.run)
        if broken:
            del self._broken[channel]

    def _look_again(self) -> None:
        self._looked_at = float("-inf")


def _cancel(begun: asyncio.Task[RunWriter]) -> None:
    """End a run whose caller was cancelled before it had begun."""
    if not begun.cancelled() and begun.exception() is None:
        begun.result().cancel()


def _run_started(
    thread: Thread, run: str, messages: Sequence[Mapping[str, Any]]
) -> AgentEvent:
    """Return the RUN_STARTED of a run, with the messages that are new in the thread."""
    fields: dict[str, Any] = {
        "type": "RUN_STARTED",
        "threadId": thread.name,
        "runId": run,
    }
    known = thread.fold.message_ids()
    new = [message for message in messages if message.get("id") not in known]
    if new:
        fields["input"] = {
            "threadId": thread.name,
            "runId": run,
            "messages": new,
            "tools": [],
            "context": [],
        }
    return dump(fields)

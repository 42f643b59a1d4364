"""Threads of this process: runs that are started, found, cancelled and ended.

A run that lives has an entry in the store's state: its thread, its id and the process
that writes it. The entry is put before the RUN_STARTED is stored, and taken after the
terminal event and the last segment are; so there is no run without an entry, and what
is found in an entry may be over already.

Each process looks at the entries every `ROUND` seconds where several share a store, and
once at its start in any case. An entry is *orphaned* when its process does not live any
more: when it is another than this one on a store of one process, when its own entry
(``run-node``, put every `ROUND` seconds while it has runs) is older than `NODE_TTL`, or
when it is this process and has no writer for it. An orphaned run gets its RUN_ERROR
``agent_lost``: at once, or where the agent pushes its events and may come back to any
process, when it has not come within the lease. Versions (`service.agents.writer`) see
to it that there is one terminal event, whoever else does the same.

Bounds: `RUNS` live runs, `MEMORY` bytes of threads; a start beyond is refused with
``too_many_runs``. Threads that nobody uses stay in memory up to `IDLE_MEMORY` bytes.

Interleavings, each a test in tests/agents/test_threads.py: two starts of a thread at
once, of one run or of two, in one process and in two; a process that dies between the
entry and the start, between the start and the terminal event, and between that and the
taking of the entry; a process that was thought to be dead and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
import structlog

from service.agents.errors import Refused, RunExists
from service.agents.events import AgentEvent, dump, parse_event
from service.agents.feed import Feed, Follower
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
from service.hub.hub import Hub
from service.settings import ChannelOptions

__all__ = ["KEEP_ALIVE", "Threads"]

log = structlog.get_logger("steadwire")

Writes = Literal["relay", "push", "python"]
"""Who writes a run: this process (a relay, Python), or an agent that pushes events."""

RUNS = 2000  # live runs of this process (count)
MEMORY = 512 * 1024 * 1024  # bytes of threads in memory
IDLE_MEMORY = 64 * 1024 * 1024  # bytes of those that nobody uses
ROUND = 5.0  # s between looks at the entries
NODE_TTL = 15.0  # s without a sign of a process until its runs are orphaned
KEEP_ALIVE = 4.0
"""Seconds without an event of a live run after which its viewers get a keep-alive. They
are looked at every second, so no gap is longer than 5."""

_DAY = 24 * 3600.0
_RUN, _NODE, _CANCEL = "run", "run-node", "run-cancel"
_KEEP_ALIVE = dump(
    {"type": "CUSTOM", "name": "steadwire.keepalive", "value": None}
).text


class _Entry(msgspec.Struct):
    run: str
    node: str
    writes: Writes


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
    ) -> None:
        self.lease = lease
        self._store = store
        self._state = store.state
        self._hub = hub
        self._clock = clock
        self._spawn = spawn
        self._node = node
        self._namespace = namespace
        self._history = History(
            options.history_size, options.history_ttl, options.history_meta_ttl
        )
        self._shared = shared
        self._threads: dict[Channel, Thread] = {}  # the least recently used first
        self._feeds: dict[Channel, Feed] = {}
        self._writers: dict[Channel, RunWriter] = {}
        self._ending: set[Channel] = set()
        self._waiting: dict[Channel, float] = {}  # agents that may come back, until
        self._signed_at = float("-inf")
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
        """End the runs that live in this process alone, and stop."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        writers = tuple(self._writers.values())
        for writer in writers:
            writer.lose()
        for writer in writers:
            await writer.ended.wait()

    # Threads.

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
        if lease is None:
            lease = self.lease if writes == "push" else 0.0
        found = self._thread(channel, thread)
        found.users += 1
        try:
            async with found.starting:
                return await self._start(
                    found, run, writes, messages, started, info, lease
                )
        except BaseException:
            self._release(found)
            raise

    async def _start(
        self,
        thread: Thread,
        run: str,
        writes: Writes,
        messages: Sequence[Mapping[str, Any]],
        started: str | bytes | None,
        info: RawJson | None,
        lease: float,
    ) -> RunWriter:
        await thread.refresh()
        self._check(thread, run)
        self._check_space()
        if started is not None:
            event = parse_event(started)
        else:
            event = _run_started(thread, run, messages)
            parse_event(event.text)
        if event.type != "RUN_STARTED" or event.fields["runId"] != run:
            raise Refused("wrong_order", "a run begins with its RUN_STARTED")
        if event.fields["threadId"] != thread.name:
            raise Refused("wrong_order", "threadId is another thread's")
        if self._closing:
            raise Refused("too_many_runs", "the server is shutting down")
        entry = msgspec.json.encode(_Entry(run, self._node, writes)).decode()
        self._ending.add(thread.channel)  # no round takes the entry meanwhile
        try:
            await self._sign_of_life()
            await self._state.put(_RUN, thread.channel, entry, _DAY)
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
        finally:
            self._ending.discard(thread.channel)
        thread.committed(outcome.position.offset, event)
        if thread.fold.offset != outcome.position.offset:
            await thread.refresh()
        thread.keep(now=info is not None, info=info)
        return self._write(thread, run, lease)

    def _check(self, thread: Thread, run: str) -> None:
        known = thread.fold.runs.get(run)
        if known is not None:
            raise RunExists(run, known.start, live=not known.end)
        if thread.fold.live:
            raise Refused("thread_busy", "another run of the thread is live")

    def _check_space(self) -> None:
        if len(self._writers) >= RUNS:
            raise Refused("too_many_runs", f"{RUNS} runs are live here")
        if sum(thread.size for thread in self._threads.values()) > MEMORY:
            raise Refused("too_many_runs", "threads take all of their memory")

    async def resume(
        self, thread: str, run: str, *, lease: float | None = None
    ) -> RunWriter:
        """Return the writer of a live run whose agent pushes, wherever it was before.

        Raises:
            Refused: ``run_unknown``: no such run lives.
            ReplyError: As `channel_of`.
            StoreError: The store has a fault.
        """
        channel = self.channel_of(thread)
        found = self._thread(channel, thread)
        found.users += 1
        try:
            async with found.starting:
                writer = self._writers.get(channel)
                if writer is None or writer.run != run or writer.over:
                    return await self._resume(found, run, lease)
                self._release(found)
                return writer
        except BaseException:
            self._release(found)
            raise

    async def _resume(self, thread: Thread, run: str, lease: float | None) -> RunWriter:
        await thread.refresh()
        if thread.fold.live != run:
            raise Refused("run_unknown", f"no run {run[:64]!r} lives in the thread")
        entry = msgspec.json.encode(_Entry(run, self._node, "push")).decode()
        await self._sign_of_life()
        await self._state.put(_RUN, thread.channel, entry, _DAY)
        self._waiting.pop(thread.channel, None)
        return self._write(thread, run, self.lease if lease is None else lease)

    def _write(self, thread: Thread, run: str, lease: float) -> RunWriter:
        writer = self._writers[thread.channel] = RunWriter(
            thread,
            run,
            lease=lease,
            clock=self._clock,
            spawn=self._spawn,
            append=lambda draft, done: self._hub.publish(
                thread.channel, draft, thread.history, done
            ),
            finished=self._finished,
        )
        return writer

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
        await self._state.put(_CANCEL, channel, run, 60.0)
        return True

    # Ends.

    def _finished(self, writer: RunWriter, ended: bool) -> None:
        channel = writer.thread.channel
        if self._writers.get(channel) is writer:
            del self._writers[channel]
        if ended:
            self._ending.add(channel)
            self._spawn(self._forget_run(writer.thread))
        else:
            self._release(writer.thread)  # the next round ends it, if nobody has
            self._looked_at = float("-inf")

    async def _forget_run(self, thread: Thread) -> None:
        try:
            await thread.kept()
            await self._state.take(_RUN, thread.channel)
        except StoreError:
            pass  # the next round finds a run that is over, and takes it
        finally:
            self._ending.discard(thread.channel)
            self._release(thread)

    async def _end_lost(self, channel: Channel, run: str) -> None:
        """Give an orphaned run its terminal event, unless it has one."""
        name = self.thread_of(channel)
        if name is None:
            await self._state.take(_RUN, channel)
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
            await self._state.take(_RUN, channel)
        finally:
            self._release(thread)

    async def _append(self, thread: Thread, draft: Draft) -> Appended:
        waiter: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()

        def done(outcome: Appended | StoreError) -> None:
            if waiter.done():
                return
            if isinstance(outcome, StoreError):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)

        self._hub.publish(thread.channel, draft, thread.history, done)
        return await waiter

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
        if self._shared and self._writers:
            await self._sign_of_life()
        entries = await self._state.entries(_RUN)
        if not entries:
            return
        nodes = await self._values(_NODE)
        cancels = await self._values(_CANCEL)
        for entry in entries:
            channel = Channel(entry.key)
            try:
                found = msgspec.json.decode(entry.value, type=_Entry)
            except msgspec.DecodeError:
                continue  # of a newer version of this program
            writer = self._writers.get(channel)
            if writer is not None:
                if cancels.get(channel) == writer.run:
                    await self._state.take(_CANCEL, channel)
                    writer.cancel()
                continue
            if channel in self._ending:
                continue
            if self._lives(found.node, nodes):
                self._keep_alive(channel)
            else:
                await self._orphan(channel, found)

    async def _values(self, kind: str) -> dict[str, str]:
        if not self._shared:
            return {}
        return {entry.key: entry.value for entry in await self._state.entries(kind)}

    def _lives(self, node: str, nodes: dict[str, str]) -> bool:
        return self._shared and node != self._node and node in nodes

    async def _orphan(self, channel: Channel, entry: _Entry) -> None:
        if entry.writes == "push":
            until = self._waiting.setdefault(channel, self._clock.now() + self.lease)
            left = until - self._clock.now()
            if left > 0:
                if not self._shared:
                    self._clock.call_at(until, self._look_again)
                return
            self._waiting.pop(channel, None)
        await self._end_lost(channel, entry.run)

    def _look_again(self) -> None:
        self._looked_at = float("-inf")

    async def _sign_of_life(self) -> None:
        if self._shared:
            now = self._clock.now()
            if now - self._signed_at >= ROUND / 2:
                await self._state.put(_NODE, self._node, "", NODE_TTL)
                self._signed_at = now


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

"""A store and a hub without I/O, whose faults and delays a test decides."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import Any

from service.agents.thread import segments_of
from service.agents.threads import Threads
from service.agents.writer import RunWriter
from service.core.errors import StoreError, StoreUnavailable
from service.core.model import (
    Appended,
    Channel,
    Draft,
    HistoryPage,
    Position,
    Publication,
    RawJson,
)
from service.core.ports import History, StateEntry
from service.settings import ChannelOptions
from tests.agents.runs import text_of
from tests.clock import VirtualClock, VirtualTimer

THREAD = Channel("thread:t")


class FakeState:
    """The State port, on a clock."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.values: dict[tuple[str, str], tuple[str, float]] = {}
        self.fails = 0

    def _check(self) -> None:
        if self.fails:
            self.fails -= 1
            raise StoreUnavailable("scripted")

    async def put(self, kind: str, key: str, value: str, ttl: float) -> None:
        self._check()
        self.values[kind, key] = (value, self.clock.wall() + ttl)

    async def take(self, kind: str, key: str) -> str | None:
        self._check()
        value, expires = self.values.pop((kind, key), ("", 0.0))
        return value if expires > self.clock.wall() else None

    async def entries(self, kind: str) -> list[StateEntry]:
        self._check()
        return [
            StateEntry(key, value, expires)
            for (one, key), (value, expires) in self.values.items()
            if one == kind and expires > self.clock.wall()
        ]


class FakeStore:
    """The Store port, as far as threads use it.

    Attributes:
        script: What becomes of the next appends to threads: ``ok``; ``fail``; ``lost``
            (stored, and reported as failed); ``hold`` (until `release`); ``late``
            (stored, and reported with `release`). Then ``ok``.
        segment_script: The same for segments.
        reads: A gate: reads wait for it.
    """

    def __init__(self, clock: VirtualClock) -> None:
        self.state = FakeState(clock)
        self.logs: dict[Channel, list[Publication]] = defaultdict(list)
        self.versions: dict[Channel, int] = defaultdict(int)
        self.script: deque[str] = deque()
        self.segment_script: deque[str] = deque()
        self.held: deque[Callable[[], None]] = deque()
        self.reads = asyncio.Event()
        self.reads.set()
        self.read_fails = 0

    def append(
        self,
        channel: Channel,
        draft: Draft,
        history: History,
        done: Callable[[Appended | StoreError], None],
    ) -> None:
        script = self.segment_script if channel.startswith(":") else self.script
        action = script.popleft() if script else "ok"
        if self.held and action == "ok" and not channel.startswith(":"):
            action = "hold"  # appends commit in the order of the calls

        def commit() -> None:
            outcome: Appended | StoreError = self._commit(channel, draft)
            if action == "lost":
                outcome = StoreUnavailable("scripted")
            done(outcome)

        loop = asyncio.get_running_loop()
        if action == "late":
            outcome = self._commit(channel, draft)
            self.held.append(lambda: done(outcome))
        elif action == "fail":
            loop.call_soon(done, StoreUnavailable("scripted"))
        elif action == "hold":
            self.held.append(commit)
        else:
            loop.call_soon(commit)

    def release(self) -> None:
        """Commit what is held."""
        held, self.held = self.held, deque()
        for commit in held:
            commit()

    def _commit(self, channel: Channel, draft: Draft) -> Appended:
        log = self.logs[channel]
        if draft.version and draft.version <= self.versions[channel]:
            return Appended(Position(len(log), "e"), fresh=False)
        self.versions[channel] = max(draft.version, self.versions[channel])
        log.append(Publication(len(log) + 1, draft.data, draft.info))
        return Appended(Position(len(log), "e"), fresh=True)

    def follow(self, channel: Channel, history: History) -> None:
        pass

    def unfollow(self, channel: Channel) -> None:
        pass

    def peek(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage | None:
        return None

    async def read(
        self,
        channel: Channel,
        history: History,
        since: int | None,
        limit: int,
        *,
        reverse: bool = False,
    ) -> HistoryPage:
        log = list(self.logs[channel])
        await self.reads.wait()
        if self.read_fails:
            self.read_fails -= 1
            raise StoreUnavailable("scripted")
        top = Position(len(log), "e")
        kept = log[-history.size :]
        if reverse:
            kept = [each for each in kept if since is None or each.offset < since]
            return HistoryPage(kept[::-1][:limit], top)
        kept = [each for each in kept if each.offset > (since or 0)]
        return HistoryPage(kept if limit < 0 else kept[:limit], top)

    async def remove(self, channel: Channel) -> None:
        self.logs[channel] = []

    # What tests look at.

    def events(self, channel: Channel = THREAD) -> list[dict[str, Any]]:
        return [json.loads(each.data) for each in self.logs[channel]]

    def kinds(self, channel: Channel = THREAD) -> list[str]:
        return [each["type"] for each in self.events(channel)]

    def segments(self, channel: Channel = THREAD) -> list[dict[str, Any]]:
        found = self.logs[segments_of(channel)]
        return [json.loads(each.data) for each in found]


class Machine:
    """What one process runs on: its part of the hub, its timers and its tasks.

    A process that was killed does nothing more, whatever it had asked for.
    """

    def __init__(self, world: World) -> None:
        self._store = world.store
        self._world = world
        self.alive = True
        self.notices: list[str] = []
        self.position_check = self
        self.checked: list[str] = []

    def check(self, channel: Channel) -> None:
        self.checked.append(channel)

    def now(self) -> float:
        return self._world.clock.now()

    def wall(self) -> float:
        return self._world.clock.wall()

    def call_at(self, when: float, callback: Callable[[], object]) -> VirtualTimer:
        return self._world.clock.call_at(when, lambda: self.alive and callback())

    def publish(
        self,
        channel: Channel,
        draft: Draft,
        history: History,
        done: Callable[[Appended | StoreError], None],
    ) -> None:
        if self.alive:
            self._store.append(channel, draft, history, done)

    def notify(self, channel: Channel, data: RawJson, **options: Any) -> None:
        self.notices.append(channel)


class World:
    """Processes that share a store, on one clock."""

    def __init__(self, *, shared: bool = False, window: int = 1000) -> None:
        self.clock = VirtualClock()
        self.store = FakeStore(self.clock)
        self.shared = shared
        self.window = window
        self.tasks: set[asyncio.Task[None]] = set()
        self.failed: list[BaseException] = []
        self.machines: dict[Threads, Machine] = {}

    def spawn(self, work: Awaitable[None]) -> object:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            assert error is not None
            self.failed.append(error)

    def process(
        self, node: str = "one", *, rounds: bool = True, **options: Any
    ) -> Threads:
        """Start a process; *options* are of its threads."""
        machine = Machine(self)
        threads = Threads(
            self.store,  # type: ignore[arg-type]
            machine,  # type: ignore[arg-type]
            machine,
            self.spawn,
            node=node,
            namespace="thread",
            options=ChannelOptions(history_size=self.window, history_ttl=3600.0),
            lease=30.0,
            shared=self.shared,
            **options,
        )
        self.machines[threads] = machine
        if rounds:
            threads.start_rounds()
        return threads

    def kill(self, threads: Threads) -> None:
        """Let a process do nothing more."""
        self.machines[threads].alive = False

    def notices(self, threads: Threads) -> list[str]:
        """Return the keep-alives that a process has pushed."""
        return self.machines[threads].notices

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        for _ in range(60):
            await asyncio.sleep(0)
        assert not self.failed, self.failed

    async def pass_time(self, seconds: float) -> None:
        """Let *seconds* pass, in steps."""
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)
            await self.settle()


async def put(writer: RunWriter, *events: dict[str, Any]) -> list[asyncio.Future[int]]:
    return [await writer.put(text_of(each)) for each in events]


def terminals(kinds: list[str]) -> int:
    return sum(kind in ("RUN_FINISHED", "RUN_ERROR") for kind in kinds)

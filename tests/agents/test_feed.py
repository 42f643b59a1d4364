"""Feed: commits, the hub's reads and those of followers, in every order."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import permutations

import pytest

from service.agents.errors import Gone
from service.agents.feed import Feed, Follower
from service.agents.thread import Thread
from service.core.errors import StoreError, StoreUnavailable
from service.core.model import Channel, HistoryPage, Position
from service.core.ports import History
from tests.world.script import KEPT, A, ScriptedStore
from tests.world.scripted import ScriptedWorld


class Reads:
    """A follower's store: each read sees the log at its begin, and ends when told."""

    def __init__(self, store: ScriptedStore) -> None:
        self._store = store
        self._under_way: deque[tuple[HistoryPage, asyncio.Event]] = deque()

    def peek(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage | None:
        return None

    async def read(
        self, channel: Channel, history: History, since: int, limit: int
    ) -> HistoryPage:
        page = self._store.stream(channel).page(since, limit, reverse=False)
        told = asyncio.Event()
        self._under_way.append((page, told))
        await told.wait()
        return page

    def finish(self) -> bool:
        if not self._under_way:
            return False
        self._under_way.popleft()[1].set()
        return True


class Watched:
    """A thread with one publication, and viewers after it; no time passes."""

    def __init__(self, viewers: int = 1) -> None:
        self.world = ScriptedWorld()
        self.store = self.world.store
        self.store.publish(A)
        self.reads = Reads(self.store)
        self.closed = 0
        self.thread = Thread(
            "t",
            A,
            KEPT,
            self.store,
            self.world.clock,
            self.world.spawn,
        )
        self.feed = Feed(self.thread, self.world.hub, self._unfed)
        self.followers = [self.follow(1) for _ in range(viewers)]
        self.got: list[list[int]] = [[] for _ in self.followers]
        self.tasks = [
            asyncio.create_task(self.view(follower, got))
            for follower, got in zip(self.followers, self.got, strict=True)
        ]

    def _unfed(self, thread: Thread) -> None:
        self.closed += 1

    def follow(self, after: int) -> Follower:
        return Follower(
            self.thread,
            Position(after, ""),
            self.feed,
            self.reads,  # type: ignore[arg-type]  # as much of a store as it needs
            self.world.clock,
            shared=False,
        )

    async def view(self, follower: Follower, got: list[int]) -> None:
        while True:
            got += [each.offset for each in await follower.next()]

    async def step(self, event: str) -> None:
        """Let one thing happen, and all that follows from it at once."""
        if event == "join" and self.store.reads:
            self.store.reads[0].finish()
        elif event == "read":
            self.reads.finish()
        elif event == "commit":
            self.store.commit(A, "1")
        elif event == "tell" and self.store.untold:
            self.store.tell(1)
        await self.turns()

    @staticmethod
    async def turns() -> None:
        """Let everybody go on who can."""
        for _ in range(8):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        """Let everything come to its end; the clock stands still."""
        while True:
            await self.turns()
            if self.store.untold:
                self.store.tell(1)
            elif self.store.reads:
                self.store.reads[0].finish()
            elif not self.reads.finish():
                return

    def assert_gone(self) -> None:
        [task] = self.tasks
        assert task.done() and isinstance(task.exception(), Gone)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for follower in self.followers:
            follower.close()
        assert self.closed == 1
        assert self.store.followed == set() and self.world.clock.pending == []


ORDERS = sorted(set(permutations(("join", "read", "commit", "commit", "tell", "tell"))))


@pytest.mark.requirement("R44", "B67")
async def test_a_viewer_gets_each_event_once_in_every_order() -> None:
    assert len(ORDERS) == 180
    for order in ORDERS:
        watched = Watched()
        await watched.turns()
        for event in order:
            await watched.step(event)
        await watched.settle()
        assert watched.got == [[2, 3]], order
        # Nor is it left behind: it hears of what comes next.
        watched.store.publish(A)
        await watched.settle()
        assert watched.got == [[2, 3, 4]], order
        await watched.close()


async def test_commits_while_the_hub_catches_up_reach_all_viewers() -> None:
    watched = Watched(viewers=3)
    await watched.turns()
    watched.store.publish(A)
    for _ in range(20):  # each read of the hub is too old when it ends
        await watched.step("join")
        watched.store.publish(A)
        await watched.step("read")
    await watched.settle()
    watched.store.publish(A)
    await watched.settle()
    assert watched.got == [list(range(2, 24))] * 3
    await watched.close()


async def test_a_viewer_of_a_stream_that_restarts_is_woken_by_its_first_event() -> None:
    for joined in (True, False):
        watched = Watched()
        await watched.turns()
        if joined:
            await watched.settle()
        watched.store.restart(A)
        watched.store.publish(A)
        await watched.settle()
        watched.assert_gone()
        await watched.close()


async def test_a_viewer_that_the_history_passes_with_its_feed_is_told() -> None:
    watched = Watched()
    await watched.settle()
    watched.store.commit(A, "1", "1", "1")
    watched.store.untold.pop(0)  # another process committed it
    watched.store.tell(1)
    watched.store.trim(A, 1)
    watched.store.reads[0].look()
    await watched.settle()
    watched.assert_gone()
    await watched.close()


@pytest.mark.parametrize("fault", ["join", "catch-up"])
async def test_a_read_of_the_hub_that_fails_loses_nothing(fault: str) -> None:
    watched = Watched()
    await watched.turns()
    if fault == "catch-up":
        await watched.settle()
        watched.store.commit(A, "1", "1")
        watched.store.untold.pop(0)
        watched.store.tell()
    error: StoreError = StoreUnavailable("scripted")
    watched.store.reads[0].finish(error)
    watched.store.publish(A)
    await watched.settle()
    assert watched.got[0] == ([2] if fault == "join" else [2, 3, 4])
    watched.store.publish(A)
    await watched.settle()
    assert watched.got[0] == ([2, 3] if fault == "join" else [2, 3, 4, 5])
    await watched.close()


async def test_the_last_viewer_leaves_during_the_read_of_the_join() -> None:
    watched = Watched()
    await watched.turns()
    [task] = watched.tasks
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    watched.followers[0].close()
    watched.followers = [watched.follow(1)]
    watched.got.append([])
    watched.tasks = [
        asyncio.create_task(watched.view(watched.followers[0], watched.got[1]))
    ]
    await watched.turns()
    watched.store.publish(A)
    await watched.settle()
    assert watched.got == [[], [2]]
    watched.closed -= 1
    await watched.close()

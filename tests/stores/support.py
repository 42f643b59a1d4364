"""Factories for the contract suite, and a store with its surroundings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from service.core.model import Appended, Channel, Draft, HistoryPage
from service.core.ports import Committed, Hearer, History, State, Store
from service.settings import StoreSettings
from service.stores.sqlite.store import SqliteStore
from tests.clock import VirtualClock
from tests.stores.dynamodb.support import on_emulator

CHAT = History(100, 60.0)  # keeps what a test writes
MONTH = 720 * 3600.0  # s; how long the top outlives the last append by default

Factory = Callable[[Path, VirtualClock], Store]
"""Makes a store that is not started. Called again with the same path, it makes one
that finds what the first one stored, if it is durable."""


def on_disk(path: Path, clock: VirtualClock, **settings: object) -> SqliteStore:
    values = {"path": str(path / "store.db"), "open_timeout": 0.0, **settings}
    return SqliteStore(StoreSettings(**values), clock)


def in_memory(path: Path, clock: VirtualClock, **settings: object) -> SqliteStore:
    return SqliteStore(StoreSettings(path=":memory:", **settings), clock)


def uncached(path: Path, clock: VirtualClock, **settings: object) -> SqliteStore:
    """A store that keeps nothing in memory, so that every read is one of the file."""
    return on_disk(path, clock, cache_size=1, **settings)


def shared(path: Path, clock: VirtualClock, **settings: object) -> SqliteStore:
    """A store whose file other processes may open, too."""
    return on_disk(path, clock, shared_by="tests", **settings)


def on_ministack(path: Path, clock: VirtualClock, **settings: object) -> Store:
    return on_emulator("ministack", path, clock, **settings)


def on_moto(path: Path, clock: VirtualClock, **settings: object) -> Store:
    """With one call at a time: moto undoes what others do meanwhile."""
    return on_emulator("moto", path, clock, connections=1, **settings)


# Another implementation of the port joins the contract suite here.
FACTORIES = {
    "memory": in_memory,
    "disk": on_disk,
    "uncached": uncached,
    "shared": shared,
    "ministack": on_ministack,
    "moto": on_moto,
}
DURABLE = {"disk": on_disk, "shared": shared, "ministack": on_ministack}

Opened = tuple[State, Callable[[], Awaitable[None]]]
"""A State, and what closes it: safe to call twice."""

StateFactory = Callable[[Path, VirtualClock], Awaitable[Opened]]
"""Opens a State. Called again with the same path, it opens one that has what the
first one kept, if it is durable."""


def state_of(factory: Callable[[Path, VirtualClock], SqliteStore]) -> StateFactory:
    async def opened(path: Path, clock: VirtualClock) -> Opened:
        store = factory(path, clock)
        await store.start(lambda committed: None)
        return store.state, store.close

    return opened


# Another implementation of the State port joins its contract suite here.
STATES = {
    "memory": state_of(in_memory),
    "disk": state_of(on_disk),
    "shared": state_of(shared),
}
DURABLE_STATES = {"disk": state_of(on_disk)}


class Bench:
    """A started store, what its listener was told, and shorter words for both."""

    def __init__(
        self, store: Store, clock: VirtualClock, hearer: Hearer | None = None
    ) -> None:
        self.hearer = hearer
        self.store = store
        self.clock = clock
        self.told: list[Committed] = []
        self.commits: list[int] = []  # how many each call of the listener told of
        self.hook: Callable[[Sequence[Committed]], None] = lambda committed: None

    async def start(self) -> Bench:
        await self.store.start(self.listen, self.hearer)
        return self

    def listen(self, committed: Sequence[Committed]) -> None:
        self.told += committed
        self.commits.append(len(committed))
        self.hook(committed)

    def append(
        self, channel: str, data: str = "{}", history: History = CHAT, **draft: object
    ) -> asyncio.Future[Appended]:
        """Append and return the outcome's future, which raises a StoreError."""
        future = asyncio.get_running_loop().create_future()

        def done(outcome: object) -> None:
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.store.append(Channel(channel), Draft(data, **draft), history, done)
        return future

    async def fill(self, channel: str, count: int, history: History = CHAT) -> None:
        """Append *count* publications: the data of offset 1 is 1, and so on."""
        done = [self.append(channel, str(n + 1), history) for n in range(count)]
        await asyncio.gather(*done)

    async def read(
        self,
        channel: str,
        since: int | None = None,
        limit: int = -1,
        *,
        history: History = CHAT,
        reverse: bool = False,
    ) -> HistoryPage:
        return await self.store.read(
            Channel(channel), history, since, limit, reverse=reverse
        )

    async def offsets(self, channel: str, *args: object, **named: object) -> list[int]:
        page = await self.read(channel, *args, **named)
        return [publication.offset for publication in page.publications]

    async def sweep(self) -> None:
        """Let the sweep run until it has nothing more to do."""
        self.clock.advance(30.0)
        # Work of the writer is done in order: what is queued behind a step of the
        # sweep is done after it. Each step may ask for one more.
        for _ in range(20):
            await self.store.remove(Channel("nothing"))

    def told_of(self, channel: str) -> list[int]:
        return [c.publication.offset for c in self.told if c.channel == channel]

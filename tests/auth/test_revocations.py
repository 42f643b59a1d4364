"""Revocations: at once in this process, and soon in every process of one State."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest

from service.auth import revocations as module
from service.auth.errors import KeysUnavailable
from service.auth.revocations import Revocation, Revocations, TooManyRevocations
from service.core.errors import StoreError, StoreUnavailable
from service.core.model import UserId
from service.core.ports import StateEntry
from service.settings import StoreSettings
from service.stores.sqlite.store import SqliteStore
from tests.clock import VirtualClock

WALL = 1_700_000_000.0
ANN, BOB = UserId("ann"), UserId("bob")


class Faulty:
    """A State that can be cut off, and counts its readers."""

    def __init__(self, store: SqliteStore) -> None:
        self._state = store.state
        self.cut = False
        self.reads = 0

    async def put(self, kind: str, key: str, value: str, ttl: float) -> None:
        if self.cut:
            raise StoreUnavailable("cut off")
        await self._state.put(kind, key, value, ttl)

    async def take(self, kind: str, key: str) -> str | None:
        raise AssertionError("a revocation is not taken back")

    async def entries(self, kind: str) -> list[StateEntry]:
        self.reads += 1
        if self.cut:
            raise StoreUnavailable("cut off")
        return await self._state.entries(kind)


class Process:
    """The revocations of one process, and what it was told."""

    def __init__(self, state: Faulty, clock: VirtualClock) -> None:
        self.state = state
        self.told: list[Revocation] = []
        self.failed: list[StoreError] = []
        self.tasks: list[asyncio.Future[None]] = []
        self.revocations = Revocations(
            state,
            clock,
            spawn=self._spawn,
            on_revoked=self.told.append,
            on_failure=self.failed.append,
        )

    def _spawn(self, work: Awaitable[None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    async def settle(self) -> None:
        await asyncio.gather(*self.tasks)
        self.tasks.clear()

    def revoked(self, user: str, token_id: str = "", issued_at: float = 0.0) -> bool:
        return self.revocations.is_revoked(UserId(user), token_id, issued_at)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def store(clock: VirtualClock) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(StoreSettings(path=":memory:"), clock)
    await store.start(lambda committed: None)
    yield store
    await store.close()


@pytest.fixture
async def processes(
    store: SqliteStore, clock: VirtualClock
) -> AsyncIterator[tuple[Process, Process]]:
    both = Process(Faulty(store), clock), Process(Faulty(store), clock)
    for process in both:
        await process.revocations.start()
    yield both
    for process in both:
        process.revocations.stop()


async def test_a_token_is_revoked_here_at_once_and_elsewhere_at_the_next_look(
    processes: tuple[Process, Process], clock: VirtualClock
) -> None:
    here, there = processes
    await here.revocations.revoke_token("t1", WALL + 100)
    assert here.revoked("ann", "t1", 5) and not there.revoked("ann", "t1", 5)
    assert not here.revoked("ann", "t2", 5) and not here.revoked("ann", "", 5)
    clock.advance(2.0)
    for process in processes:
        await process.settle()
        assert process.revoked("ann", "t1", 5) and process.revoked("bob", "t1")
        assert process.told == [Revocation("t1")]


async def test_a_users_tokens_are_revoked_by_when_they_were_issued(
    processes: tuple[Process, Process], clock: VirtualClock
) -> None:
    here, there = processes
    await here.revocations.revoke_user(ANN, WALL, WALL + 100)
    clock.advance(2.0)
    await there.settle()
    for process in processes:
        assert process.revoked("ann", "any", WALL - 1)
        assert process.revoked("ann", "", 0)  # nobody knows when
        assert not process.revoked("ann", "any", WALL)
        assert not process.revoked("ann", "any", WALL + 1)
        assert not process.revoked("bob", "any", WALL - 1)
        assert process.told == [Revocation("", ANN, WALL)]


async def test_an_end_is_exact_whether_it_is_looked_at_or_not(
    processes: tuple[Process, Process], clock: VirtualClock
) -> None:
    here, there = processes
    await here.revocations.revoke_token("t", WALL + 10)
    await here.revocations.revoke_user(ANN, WALL, WALL + 10)
    clock.advance(2)
    await there.settle()
    there.state.cut = True
    clock.advance(7.99)
    for process in processes:
        await process.settle()
        assert process.revoked("bob", "t") and process.revoked("ann")
    clock.advance(0.01)
    for process in processes:
        assert not process.revoked("bob", "t") and not process.revoked("ann")
    # And it can be revoked again, and is told of again.
    await here.revocations.revoke_token("t", WALL + 20)
    assert here.told.count(Revocation("t")) == 2


async def test_a_look_that_fails_keeps_what_is_known_and_is_told_of_once(
    processes: tuple[Process, Process], clock: VirtualClock
) -> None:
    here, there = processes
    await here.revocations.revoke_token("old", WALL + 1000)
    clock.advance(2)
    await there.settle()
    there.state.cut = True
    await here.revocations.revoke_token("new", WALL + 1000)
    for _ in range(5):
        clock.advance(2)
        await there.settle()
    assert there.state.reads == 2 * 2 + 5  # a look that fails ends with its first
    assert len(there.failed) == 1
    assert there.revocations.fault == "revocations cannot be read"
    assert there.revoked("ann", "old") and not there.revoked("ann", "new")
    there.state.cut = False
    clock.advance(2)
    await there.settle()
    assert there.revocations.fault is None
    assert there.revoked("ann", "old") and there.revoked("ann", "new")
    assert there.told == [Revocation("old"), Revocation("new")]


async def test_a_look_under_way_when_the_process_ends_is_no_fault(
    processes: tuple[Process, Process], clock: VirtualClock
) -> None:
    _, there = processes
    clock.advance(2)  # the look begins with the next turn of the loop
    there.revocations.stop()
    there.state.cut = True
    await there.settle()
    assert there.state.reads == 3 and there.failed == []
    assert there.revocations.fault is None


async def test_until_the_list_was_read_nobody_is_believed(
    store: SqliteStore, clock: VirtualClock
) -> None:
    process = Process(Faulty(store), clock)
    with pytest.raises(KeysUnavailable):
        process.revoked("ann")
    process.state.cut = True
    await process.revocations.start()
    with pytest.raises(KeysUnavailable):
        process.revoked("ann")
    process.state.cut = False
    clock.advance(2)
    await process.settle()
    assert not process.revoked("ann")
    process.revocations.stop()


async def test_what_is_not_kept_is_not_revoked(
    processes: tuple[Process, Process],
) -> None:
    here, _ = processes
    here.state.cut = True
    with pytest.raises(StoreUnavailable):
        await here.revocations.revoke_token("t", WALL + 100)
    assert not here.revoked("ann", "t") and here.told == []


async def test_a_second_revocation_of_a_user_takes_nothing_back(
    processes: tuple[Process, Process], clock: VirtualClock
) -> None:
    here, there = processes
    await here.revocations.revoke_user(ANN, WALL, WALL + 100)
    await here.revocations.revoke_user(ANN, WALL - 50, WALL + 50)
    await here.revocations.revoke_user(ANN, WALL + 5, WALL + 60)
    clock.advance(2)
    await there.settle()
    clock.advance(97)
    for process in processes:
        await process.settle()
        assert process.revoked("ann", "x", WALL + 4)
        assert not process.revoked("ann", "x", WALL + 5)
    assert here.told == [Revocation("", ANN, WALL), Revocation("", ANN, WALL + 5)]
    assert there.told == [Revocation("", ANN, WALL + 5)]


async def test_revocations_at_once_take_nothing_back(
    processes: tuple[Process, Process], clock: VirtualClock
) -> None:
    here, there = processes
    await asyncio.gather(
        here.revocations.revoke_token("t", WALL + 100),
        here.revocations.revoke_token("t", WALL + 10),
        here.revocations.revoke_user(ANN, WALL, WALL + 100),
        here.revocations.revoke_user(ANN, WALL - 50, WALL + 10),
    )
    clock.advance(20)
    await there.settle()  # knows what the State holds, and nothing else
    for process in processes:
        assert process.revoked("bob", "t")
        assert process.revoked("ann", "x", WALL - 1)


async def test_the_list_is_bounded(
    processes: tuple[Process, Process],
    clock: VirtualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_REVOCATIONS", 3)
    revocations = processes[0].revocations
    await revocations.revoke_token("a", WALL + 10)
    await revocations.revoke_token("b", WALL + 20)
    await revocations.revoke_user(ANN, WALL, WALL + 20)
    with pytest.raises(TooManyRevocations):
        await revocations.revoke_token("c", WALL + 10)
    with pytest.raises(TooManyRevocations):
        await revocations.revoke_user(BOB, WALL, WALL + 10)
    await revocations.revoke_token("a", WALL + 11)  # is there already
    await revocations.revoke_user(ANN, WALL + 1, WALL + 20)
    clock.advance(11)
    await revocations.revoke_token("c", WALL + 20)


async def test_names_of_any_kind_and_length(
    processes: tuple[Process, Process], clock: VirtualClock
) -> None:
    here, there = processes
    names = ["x" * 4000, "é\x00\n", '"', "a b"]
    for name in names:
        await here.revocations.revoke_token(name, WALL + 100)
    for name in ["u" * 600, "", '"\\', "\u0000" * 600]:
        await here.revocations.revoke_user(UserId(name), WALL, WALL + 100)
    clock.advance(2)
    await there.settle()
    assert sorted(there.told) == sorted(here.told)
    assert all(there.revoked("ann", name, WALL + 1) for name in names)
    assert there.revoked("u" * 600) and there.revoked("")


async def test_a_token_is_never_revoked_for_less_long(
    processes: tuple[Process, Process], clock: VirtualClock
) -> None:
    here, there = processes
    await here.revocations.revoke_token("t", WALL + 100)
    await here.revocations.revoke_token("t", WALL + 10)
    clock.advance(20)
    await there.settle()  # knows what the State holds, and nothing else
    assert here.revoked("bob", "t") and there.revoked("bob", "t")

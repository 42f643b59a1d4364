"""The parts of a process: what closes them, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from service import runtime as module
from service.core.errors import StartupError, StoreUnavailable
from service.core.hooks import Handlers
from service.runtime import Runtime
from service.settings import Settings, StoreSettings
from service.stores.sqlite.store import SqliteStore
from tests.clock import VirtualClock

SETTINGS = Settings(store=StoreSettings(path=":memory:"))


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    runtime = await Runtime.open(SETTINGS, Handlers(), VirtualClock())
    yield runtime
    await runtime.aclose()


def note_closing(events: list[str], patches: pytest.MonkeyPatch) -> None:
    close = SqliteStore.close

    async def closing(self: SqliteStore) -> None:
        events.append("store")
        await close(self)

    patches.setattr(SqliteStore, "close", closing)


class Upkeep:
    """A registry of processes that cannot be entered, or can."""

    def __init__(self, events: list[str], *, fails: bool) -> None:
        async def evictions() -> list[str]:
            return []

        self.directory = SimpleNamespace(evictions=evictions)
        self.cluster = SimpleNamespace(name="node", names=("node",))
        self.period = 1.0
        self._events = events
        self._fails = fails

    def describe_by(self, figures: object) -> None:
        assert callable(figures)

    async def start(self) -> None:
        if self._fails:
            raise StartupError("the table is not there")

    async def close(self) -> None:
        self._events.append("registry")


@pytest.mark.parametrize("fails", [True, False])
async def test_the_registry_of_processes_is_left_before_the_store_is_closed(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    note_closing(events, monkeypatch)
    upkeep = Upkeep(events, fails=fails)
    monkeypatch.setattr(module, "make_upkeep", lambda *args: upkeep)
    opening = Runtime.open(SETTINGS, Handlers(), VirtualClock())
    if fails:
        with pytest.raises(StartupError, match="not there"):
            await opening
    else:
        await (await opening).aclose()
    assert list(dict.fromkeys(events)) == ["registry", "store"]


async def test_a_store_that_cannot_be_closed_keeps_nothing_else_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close = SqliteStore.close

    async def closing(self: SqliteStore) -> None:
        await close(self)
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(SqliteStore, "close", closing)
    runtime = await Runtime.open(SETTINGS, Handlers(), VirtualClock())
    runtime.context.spawn(asyncio.sleep(1000))
    with pytest.raises(StoreUnavailable):
        await runtime.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_background_task_that_is_left_is_cancelled(runtime: Runtime) -> None:
    ended = asyncio.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    runtime.context.spawn(endless())
    await asyncio.sleep(0)
    await runtime.aclose()
    assert ended.is_set()


async def test_health_says_that_it_is_closed(runtime: Runtime) -> None:
    assert runtime.checks.faults() == {}
    await runtime.aclose()
    fault = runtime.checks.faults()["store"]
    assert (fault.reason, fault.failing) == ("shutting down", True)


async def test_no_timer_is_left(runtime: Runtime) -> None:
    assert isinstance(runtime.clock, VirtualClock)
    assert runtime.clock.pending
    await runtime.aclose()
    assert runtime.clock.pending == []

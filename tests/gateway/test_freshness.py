"""A subscribe's reply covers what others delivered before they could see its row.

Two environments on one store. The cache of the one that subscribes is warm, and its
clock stands still, as in an environment that was frozen: what it believes is believed
for ever. The other one appends, delivers to the rows that it sees, and releases, at
each place between two calls of the subscribe.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from service.core.clock import SystemClock
from service.core.model import Channel, HistoryPage
from service.core.ports import RowState, Timer
from tests.gateway.environments import Environment, Environments
from tests.harness.emulators import Emulator

CH = Channel("chat:x")
ATTEMPTS = 5  # of a client whose calls to the table took too long on a busy machine


class FrozenClock:
    """A monotonic clock that stands still; timers still end calls that hang."""

    def __init__(self) -> None:
        self._wall = time.time()

    def now(self) -> float:
        return 1000.0

    def wall(self) -> float:
        return self._wall

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, when - 1000.0), callback)


@pytest.fixture
async def environments(
    ministack: Emulator, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Environments]:
    for name, value in ministack.credentials.items():
        monkeypatch.setenv(name, value)
    environments = await Environments(ministack).create(SystemClock())
    yield environments
    await environments.close()


def correct(one: Environment) -> None:
    """Leave it as it is."""


def cached(one: Environment) -> None:
    """Answer the read from memory where that can be done."""
    store: Any = one.base.store

    async def read(channel: Any, history: Any, since: Any, limit: Any) -> HistoryPage:
        page = store.peek(channel, history, since or 0, limit)
        return page or await store.read(channel, history, since, limit)

    one.runtime.delivery.read_fresh = read


def before_the_row(one: Environment) -> None:
    """Read the top first, and store the row then."""
    store: Any = one.base.store
    claim = store.subscribers.claim
    rules = one.base.permissions.rules(CH)
    pages: list[HistoryPage] = []

    async def claims(channel: Any, row: Any, record: Any) -> Any:
        pages.append(await store.read_fresh(channel, rules.history, 0, 0))
        return await claim(channel, row, record)

    async def read(*asked: Any) -> HistoryPage:
        return pages[-1]

    store.subscribers.claim = claims
    one.runtime.delivery.read_fresh = read


async def _holes(environments: Environments, wrong: Callable[[Any], None]) -> list[int]:
    """Return the places at which a publication between two calls was lost."""
    other = await environments.open(SystemClock())
    one = await environments.open(FrozenClock())
    await other.publish(CH, 0)
    history = one.base.permissions.rules(CH).history
    await one.base.store.read(CH, history, 0, 10)  # warm
    wrong(one)
    calls: Any = one.base.store
    call = calls.client.call
    place = count = 0
    waits = asyncio.Event()  # the holder sees a row that is pending
    theirs: Any = other.base.store
    rows = theirs.subscribers.rows
    publishing: asyncio.Task[None] | None = None

    async def looked(channel: Channel) -> Any:
        found = await rows(channel)
        if any(row.state in (RowState.PENDING, RowState.PIECES) for row in found):
            waits.set()
        return found

    theirs.subscribers.rows = looked

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal count, publishing
        count += 1
        if count == place:
            # It delivers and releases, unless the row makes it wait.
            waits.clear()
            publishing = asyncio.create_task(other.publish(CH, place))
            waiting = asyncio.create_task(waits.wait())
            both = {publishing, waiting}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        return await call(*arguments, **options)

    async def joins(client: str) -> bool:
        """Subscribe; return whether it is in: a call that took too long is repeated."""
        nonlocal count
        await other.connect(client)
        count = 0
        calls.client.call = counted
        await one.say(client, {"id": 2, "subscribe": {"channel": CH}})
        calls.client.call = call
        if count >= place:
            assert publishing is not None
            await publishing
        await other.publish(CH, "last")
        replies = [m for m in one.sockets.messages[client] if m.get("id") == 2]
        return client not in one.sockets.closed and "subscribe" in replies[0]

    holes = []
    while True:
        place += 1
        for attempt in range(ATTEMPTS):
            client = f"client{place}-{attempt}"
            if await joins(client):
                break
        else:
            pytest.fail(f"{client} was the last of {ATTEMPTS} that did not get in")
        if count < place:
            break
        [reply] = [m for m in one.sockets.messages[client] if m.get("id") == 2]
        offsets = one.sockets.offsets(client, CH)
        top = (await other.base.store.read(CH, history, None, 0)).top.offset
        begin = reply["subscribe"]["offset"]
        if offsets != list(range(begin + 1, top + 1)):
            holes.append(place)
    assert place > 4  # the read, the row, the fresh read, the activation
    return holes


@pytest.mark.parametrize(
    ("wrong", "caught"), [(correct, False), (cached, True), (before_the_row, True)]
)
async def test_every_place_of_a_publication(
    environments: Environments, wrong: Callable[[Any], None], caught: bool
) -> None:
    assert bool(await _holes(environments, wrong)) is caught

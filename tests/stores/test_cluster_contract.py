"""The Cluster and Directory ports, the same cases on both stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import pytest

from service.core.cluster import (
    ANY_CHANNEL,
    NOTICE_TTL,
    Answer,
    Changes,
    Cluster,
    Notice,
    PresenceKey,
    PresenceRow,
)
from service.core.errors import CLOSE_CONNECTION_LIMIT, TOO_MANY_REQUESTS_CLOSE
from service.core.model import Channel, ClientId, RawJson, UserId
from service.core.ports import Directory
from service.settings import StoreSettings
from service.stores.sqlite.cluster import (
    SharedLimits,
    SqliteCluster,
    SqliteDirectory,
    SqliteUpkeep,
)
from service.stores.sqlite.store import SqliteStore
from tests.clock import VirtualClock
from tests.stores.dynamodb.registry.fleet import Fleet
from tests.stores.dynamodb.support import StoreClock

NEWS, OTHER = Channel("news"), Channel("other")


class Process(Protocol):
    """One process of a deployment, whose periodic work a test does by hand."""

    cluster: Cluster
    directory: Directory

    async def heartbeat(self) -> None: ...

    async def close(self) -> None: ...


class SqliteProcess(SqliteUpkeep):
    """A process of a file; here all share one store."""

    def __init__(self, store: SqliteStore, clock: VirtualClock, **limits: Any) -> None:
        self.active: dict[str, float] = {}
        doors = {"write": store.write_cluster, "read": store.read_cluster}
        cluster = SqliteCluster(clock, **doors)
        merged = {"total": 100, "user": 3, "address": 100, "evict": True} | limits
        directory = SqliteDirectory(
            cluster,
            SharedLimits(age=86400.0, **merged),
            clock,
            self.active.get,
            **doors,
        )
        super().__init__(cluster, directory, clock)


class DynamodbProcess:
    """A process of a table."""

    def __init__(self, process: Any) -> None:
        self.directory = process
        self.cluster = process.cluster
        self.heartbeat = process.heartbeat
        self.close = process.maintenance.close


Make = Callable[..., Any]


@pytest.fixture(params=["sqlite", "dynamodb"])
async def make(
    request: pytest.FixtureRequest, clock: VirtualClock
) -> AsyncIterator[Make]:
    """Make processes of one deployment, with the limits of the first call."""
    made: list[Process] = []
    shared: list[Any] = []

    async def make_sqlite(**limits: Any) -> Process:
        if not shared:
            store = SqliteStore(StoreSettings(path=":memory:"), clock)
            await store.start(lambda batch: None)
            shared.append(store)
        process = SqliteProcess(shared[0], clock, **limits)
        await process.cluster.register()  # without heartbeats of its own
        made.append(process)
        return process

    async def make_dynamodb(
        total: int = 100, user: int = 3, *, evict: bool = True
    ) -> Process:
        if not shared:
            ministack = request.getfixturevalue("ministack")
            fleet = Fleet(
                ministack.settings(client_limit=total),
                StoreClock(clock),
                user=user,
                policy="evict_lru" if evict else "reject",
            )
            shared.append(await fleet.create())
        process = DynamodbProcess(await shared[0].process())
        made.append(process)
        return process

    if request.param == "sqlite":
        yield make_sqlite
    else:
        yield make_dynamodb
    with pytest.MonkeyPatch.context() as patch:
        # Nobody who is left will go: that is not waited for.
        patch.setattr("service.stores.sqlite.cluster.CLOSING", 0.0)
        patch.setattr("service.stores.dynamodb.registry.directory.CLOSING", 0.0)
        for process in made:
            await process.close()
    for each in shared:
        await each.close()


def row_of(process: Process, client: str, channel: Channel, **more: Any) -> PresenceRow:
    row = PresenceRow(
        channel,
        ClientId(client),
        UserId("u"),
        process.cluster.name,
        RawJson(f'{{"client":"{client}"}}'),
        1_700_000_000_000,
        announced=True,
    )
    return row._replace(**more)


async def admit(process: Process, user: str, client: str) -> Any:
    return await process.directory.admit(UserId(user), ClientId(client), "192.0.2.1")


async def living(process: Process) -> set[str]:
    return {node.name for node in await process.cluster.nodes() if not node.dead}


async def test_a_node_knows_the_others(make: Make) -> None:
    one, two = await make(), await make()
    await one.heartbeat()
    [other] = await one.cluster.nodes()
    assert (other.name, other.dead, list(other.feed)) == (two.cluster.name, False, [])
    feed = [Changes(1, (NEWS, OTHER)), Changes(2, (ANY_CHANNEL,))]
    await two.cluster.tell(feed)
    [other] = await one.cluster.nodes()
    assert list(other.feed) == feed
    await two.close()
    assert await living(one) == set()


async def test_rows_are_seen_by_all_until_they_are_deleted(make: Make) -> None:
    one, two = await make(), await make()
    a, b = row_of(one, "a", NEWS), row_of(two, "b", NEWS, present=False)
    await one.cluster.enter([a, row_of(one, "a", OTHER)])
    await two.cluster.enter([b])
    for process in (one, two):
        assert sorted(await process.cluster.present(NEWS)) == [a, b]
    lost = a._replace(lost=1_700_000_000_001, info=RawJson("{}"))
    await one.cluster.enter([lost])
    assert sorted(await two.cluster.present(NEWS)) == [lost, b]
    for _ in range(2):  # it may be repeated
        await one.cluster.leave([PresenceKey(NEWS, ClientId("a"))])
        assert await two.cluster.present(NEWS) == [b]
    assert [row.client for row in await two.cluster.present(OTHER)] == ["a"]


async def test_a_node_that_is_late_loses_its_rows_and_gets_another_name(
    make: Make, clock: VirtualClock
) -> None:
    one, late = await make(), await make()
    name = late.cluster.name
    await late.cluster.enter([row_of(late, "a", NEWS)])
    assert await admit(late, "u", "a") == []
    clock.advance(41)
    await one.heartbeat()
    assert [node.dead for node in await one.cluster.nodes()] == [True]
    assert await one.cluster.present(NEWS) == []
    # It is back, and admits its connections as if they came now.
    await late.heartbeat()
    assert late.cluster.name != name
    assert set(late.cluster.names) == {late.cluster.name, name}
    assert await living(one) == {late.cluster.name}
    assert await one.directory.total() >= 1
    await late.cluster.enter([row_of(late, "a", NEWS)])
    [row] = await one.cluster.present(NEWS)
    assert row.node == late.cluster.name
    clock.advance(NOTICE_TTL)
    assert await late.directory.evictions() == []


async def test_a_notice_is_there_until_it_was_acted_on(
    make: Make, clock: VirtualClock
) -> None:
    one, two, three = await make(), await make(), await make()
    first = Notice("1", "disconnect", '{"user":"u"}')
    second = Notice("2", "channels", "*", asker=one.cluster.name)
    assert set(await one.cluster.send(second)) == {
        two.cluster.name,
        three.cluster.name,
    }
    await one.cluster.send(first)
    assert await one.cluster.notices() == []
    assert list(await two.cluster.notices()) == [first, second]
    assert list(await two.cluster.notices()) == [first, second]
    for _ in range(2):
        await two.cluster.settle([first.id])
        assert list(await two.cluster.notices()) == [second]
    assert list(await three.cluster.notices()) == [first, second]
    clock.advance(NOTICE_TTL + 1)
    assert await three.cluster.notices() == []


async def test_answers_come_in_parts(make: Make) -> None:
    one, two = await make(), await make()
    asked = Notice("1", "channels", "", asker=one.cluster.name)
    other = Notice("2", "channels", "", asker=one.cluster.name)
    await two.cluster.answer(asked, ["a" * 100_000, "b"])
    await two.cluster.answer(asked, ["a" * 100_000, "b"])  # it may be repeated
    name = two.cluster.name
    assert sorted(await one.cluster.answers(asked)) == [
        Answer(name, 0, 2, "a" * 100_000),
        Answer(name, 1, 2, "b"),
    ]
    assert await one.cluster.answers(other) == []
    await one.cluster.forget_answers(asked)
    assert await one.cluster.answers(asked) == []


async def test_a_notice_reaches_a_node_under_its_former_name(
    make: Make, clock: VirtualClock
) -> None:
    one, late = await make(), await make()
    notice = Notice("1", "disconnect", "{}")
    await one.cluster.send(notice)
    clock.advance(41)
    await one.heartbeat()
    await late.heartbeat()  # it was late, and nobody has marked it: it lives on
    assert [each.id for each in await late.cluster.notices()] == ["1"]


@pytest.mark.requirement("R2", "R4")
async def test_the_fourth_of_a_user_takes_the_place_of_the_least_active(
    make: Make, clock: VirtualClock
) -> None:
    here, there = await make(), await make()
    for process, client in ((here, "a"), (here, "b"), (there, "c")):
        assert await admit(process, "u", client) == []
        clock.advance(1)
    await here.directory.touch({ClientId("a"): clock.wall()})
    clock.advance(1)
    assert await admit(there, "u", "d") == ["b"]
    assert await there.directory.evictions() == []
    for _ in range(2):  # until it has left
        assert await here.directory.evictions() == ["b"]
    await here.directory.leave(ClientId("b"))
    assert await here.directory.evictions() == []
    assert await here.directory.total() == 3
    for _ in range(2):
        await there.directory.leave(ClientId("c"))
        assert await here.directory.total() == 2


@pytest.mark.requirement("R2", "R3")
async def test_whoever_is_over_a_limit_is_refused(make: Make) -> None:
    here, there = [await make(total=3, user=2, evict=False) for _ in range(2)]
    assert await admit(here, "u", "a") == []
    assert await admit(there, "u", "b") == []
    assert await admit(there, "u", "b") == []  # it may be repeated
    assert await admit(here, "u", "c") is CLOSE_CONNECTION_LIMIT
    assert await admit(here, "v", "d") == []
    assert await admit(there, "w", "e") is TOO_MANY_REQUESTS_CLOSE
    await there.directory.leave(ClientId("b"))
    assert await admit(there, "w", "e") == []
    assert await here.directory.total() == 3


async def test_the_places_of_a_dead_node_are_free(
    make: Make, clock: VirtualClock
) -> None:
    one, dead = await make(user=1, evict=False), await make(user=1, evict=False)
    assert await admit(dead, "u", "a") == []
    assert await admit(one, "u", "b") is CLOSE_CONNECTION_LIMIT
    clock.advance(41)
    await one.heartbeat()
    await one.cluster.nodes()  # marks it
    # On a table its records may still be there; they are the first to go.
    assert await admit(one, "u", "b") in ([], ["a"])

"""Tickets: once, in time, for whom and from where they are."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from random import SystemRandom

import pytest

from service.auth import tickets as module
from service.auth.errors import TokenExpired, TokenInvalid
from service.auth.tickets import TicketRefused, Tickets
from service.core.errors import StoreUnavailable
from service.core.hooks import Raw
from service.core.model import RawJson, UserId
from service.settings import StoreSettings
from service.stores.sqlite.store import SqliteStore
from tests.clock import VirtualClock

WALL = 1_700_000_000.0


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
def tickets(store: SqliteStore, clock: VirtualClock) -> Tickets:
    return Tickets(store.state, clock, SystemRandom())


async def test_a_ticket_says_what_it_was_given_for(tickets: Tickets) -> None:
    claims = {
        "sub": "ann",
        "expire_at": WALL + 100,
        "info": {"name": "Ann"},
        "meta": {"a": 1},
        "subs": {"news": {"info": 1, "override": {"presence": {"value": True}}}},
    }
    found = await tickets.redeem(await tickets.issue(claims), "https://any.example")
    assert (found.user, found.expire_at, found.issued_at) == ("ann", WALL + 100, WALL)
    assert (found.info, found.meta) == ('{"name":"Ann"}', '{"a":1}')
    assert list(found.subscriptions) == ["news"]
    subscription = found.subscriptions["news"]
    assert subscription.info == Raw(RawJson("1"))
    assert subscription.override.changes() == {"presence": True}


@pytest.mark.requirement("L14")
async def test_a_ticket_is_256_bits_and_only_its_hash_is_kept(
    tickets: Tickets, store: SqliteStore
) -> None:
    given = [await tickets.issue({"sub": "ann"}) for _ in range(100)]
    assert len(set(given)) == 100
    assert all(len(ticket) == 4 + 43 and ticket[:4] == "tkt_" for ticket in given)
    kept = await store.state.entries("ticket")
    hashes = {hashlib.sha256(ticket.encode()).hexdigest() for ticket in given}
    assert {one.key for one in kept} == hashes
    assert not any(ticket[4:] in str(kept) for ticket in given)


@pytest.mark.requirement("L14")
async def test_a_ticket_is_good_once_whoever_shows_it(tickets: Tickets) -> None:
    for _ in range(20):
        ticket = await tickets.issue({"sub": "ann"})
        outcomes = await asyncio.gather(
            *[tickets.redeem(ticket, "") for _ in range(10)], return_exceptions=True
        )
        refused = [one for one in outcomes if isinstance(one, TokenExpired)]
        assert (len(refused), len(outcomes)) == (9, 10)


@pytest.mark.parametrize("ttl", [1, 60])
async def test_a_ticket_is_over_at_its_end(
    tickets: Tickets, clock: VirtualClock, ttl: int
) -> None:
    early, late = [await tickets.issue({"sub": "a"}, ttl=ttl) for _ in range(2)]
    clock.advance(ttl - 0.01)
    assert (await tickets.redeem(early, "")).user == "a"
    clock.advance(0.01)
    with pytest.raises(TokenExpired):
        await tickets.redeem(late, "")


async def test_what_a_ticket_is_for_may_be_over_first(
    tickets: Tickets, clock: VirtualClock
) -> None:
    ticket = await tickets.issue({"sub": "a", "expire_at": WALL + 5})
    clock.advance(5)
    with pytest.raises(TokenExpired):
        await tickets.redeem(ticket, "")
    with pytest.raises(TicketRefused):
        await tickets.issue({"sub": "a", "expire_at": WALL})


async def test_a_ticket_of_an_origin_is_for_no_other_and_used_up_by_it(
    tickets: Tickets,
) -> None:
    origin = "https://chat.example"
    good = await tickets.issue({"sub": "a"}, origin=origin)
    assert (await tickets.redeem(good, origin)).user == "a"
    wrong = ("", "https://chat.example.evil", "https://CHAT.example", "null")
    for other in wrong:
        ticket = await tickets.issue({"sub": "a"}, origin=origin)
        with pytest.raises(TokenInvalid, match="another origin"):
            await tickets.redeem(ticket, other)
        with pytest.raises(TokenExpired):
            await tickets.redeem(ticket, origin)


async def test_what_is_not_there_has_expired_and_what_is_none_is_invalid(
    tickets: Tickets,
) -> None:
    ticket = await tickets.issue({"sub": "a"})
    with pytest.raises(TokenExpired):
        await tickets.redeem("tkt_" + "A" * 43, "")
    none = ["tkt_", "", "TKT_" + ticket[4:], ticket + "A", ticket[:-1], ticket + "\n"]
    for wrong in [*none, ticket[:-1] + "=", "tkt_" + "é" * 43, " " + ticket]:
        with pytest.raises(TokenInvalid):
            await tickets.redeem(wrong, "")
    assert (await tickets.redeem(ticket, "")).user == "a"


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "a", "info": "x" * 5000},
        {"sub": "é" * 2100},
        {"sub": "a", "meta": [1]},
        {"sub": "a", "subs": {"c": {"override": {"presence": True}}}},
        {"sub": "a", "channel": "c"},
        {"sub": 1},
    ],
    ids=lambda claims: json.dumps(claims)[:40],
)
async def test_what_cannot_be_a_ticket_is_refused(
    tickets: Tickets, store: SqliteStore, claims: dict[str, object]
) -> None:
    with pytest.raises(TicketRefused) as refused:
        await tickets.issue(claims)
    assert not refused.value.full
    assert await store.state.entries("ticket") == []


async def test_only_so_many_are_outstanding(
    tickets: Tickets, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OUTSTANDING", 3)
    for _ in range(3):
        await tickets.issue({"sub": "a"}, ttl=10)
    with pytest.raises(TicketRefused) as refused:
        await tickets.issue({"sub": "a"})
    assert refused.value.full
    clock.advance(10)
    await tickets.issue({"sub": "a"})


async def test_a_user_s_tickets_are_forgotten_and_no_others(tickets: Tickets) -> None:
    mine = [await tickets.issue({"sub": "a"}) for _ in range(3)]
    other = await tickets.issue({"sub": "b"})
    await tickets.redeem(mine[0], "")
    assert await tickets.forget(UserId("a")) == 2
    assert await tickets.forget(UserId("a")) == 0
    for ticket in mine:
        with pytest.raises(TokenExpired):
            await tickets.redeem(ticket, "")
    assert (await tickets.redeem(other, "")).user == "b"


async def test_without_its_state_nobody_comes_in(
    tickets: Tickets, store: SqliteStore
) -> None:
    ticket = await tickets.issue({"sub": "a"})
    await store.close()
    with pytest.raises(StoreUnavailable):
        await tickets.redeem(ticket, "")
    with pytest.raises(StoreUnavailable):
        await tickets.issue({"sub": "a"})
    with pytest.raises(StoreUnavailable):
        await tickets.forget(UserId("a"))

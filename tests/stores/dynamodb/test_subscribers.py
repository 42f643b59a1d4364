"""Rows of subscriptions at the gateway: the highest command of a client wins."""

from __future__ import annotations

import itertools

import pytest

from service.core.model import Channel, ClientId, Position, RawJson, UserId
from service.core.ports import Claim, RowState, SubscriberRow
from tests.stores.dynamodb.support import Faults, lost

NEWS = Channel("news")
ANN = ClientId("ann=")


def row(command, **more):
    return SubscriberRow(
        ANN, UserId("u"), RawJson('{"a":1}'), command=command, present=True, **more
    )


@pytest.fixture
async def bench(open_bench):
    bench = await open_bench(Faults(), leases=True)
    bench.rows = bench.store.store.subscribers
    bench.state = lambda: state(bench)
    return bench


async def state(bench):
    found = await bench.rows.rows(NEWS)
    return [(each.state, each.command) for each in found]


async def test_a_subscription_from_its_claim_to_its_end(bench):
    rows = bench.rows
    assert await rows.claim(NEWS, row(1), "record") is Claim.MINE
    assert await rows.begin_pieces(NEWS, ANN, 1, 10_000_000)
    (found,) = await rows.rows(NEWS)
    assert (found.state, found.at) == (RowState.PIECES, 9_990_000)
    position = Position(7, "e")
    assert await rows.activate(NEWS, ANN, 1, position)
    (found,) = await rows.rows(NEWS)
    assert found == row(1)._replace(
        state=RowState.ACTIVE, position=position, at=9_990_000
    )
    assert not await rows.activate(NEWS, ANN, 1, position)
    assert await rows.reset(NEWS, ANN, 1)
    assert not await rows.reset(NEWS, ANN, 1)
    assert await rows.leave(NEWS, ANN, 2) is Claim.MINE
    assert await bench.state() == [(RowState.LEFT, 2)]
    await rows.remove(NEWS, ANN)
    assert await bench.state() == []


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
async def test_whatever_the_order_the_last_command_wins(bench, order):
    """Subscribe 1, unsubscribe 2, subscribe 3."""
    rows = bench.rows
    for command in order:
        if command == 2:
            await rows.leave(NEWS, ANN, 2)
        else:
            await rows.claim(NEWS, row(command), str(command))
    (found,) = await rows.rows(NEWS)
    assert found.command == 3
    assert found.state in (RowState.PENDING, RowState.WAITING)
    assert found.state is (RowState.PENDING if order[0] == 3 else RowState.WAITING)


async def test_a_command_that_comes_again_is_stale(bench):
    rows = bench.rows
    assert await rows.claim(NEWS, row(4), "") is Claim.MINE
    assert await rows.claim(NEWS, row(4), "") is Claim.STALE
    assert await rows.claim(NEWS, row(3), "") is Claim.STALE
    assert await rows.leave(NEWS, ANN, 3) is Claim.STALE
    assert await bench.state() == [(RowState.PENDING, 4)]


async def test_a_waiting_row_is_granted_by_the_holder_alone(bench):
    rows = bench.rows
    taken = []

    class Taker:
        hands_over = False
        took = staticmethod(taken.append)

    bench.store.store.holder = Taker()
    await bench.append("news", "1")
    (hold,) = taken
    await rows.claim(NEWS, row(1), "")
    await rows.activate(NEWS, ANN, 1, Position(1, "e"))
    assert await rows.claim(NEWS, row(2), "") is Claim.WAITS
    assert await rows.wait(NEWS, ANN, 2) is Claim.WAITS
    assert not await rows.grant(NEWS, ANN, 2, "another")
    assert not await rows.grant(NEWS, ANN, 1, hold.token)
    assert await rows.grant(NEWS, ANN, 2, hold.token)
    assert await rows.wait(NEWS, ANN, 2) is Claim.MINE
    assert await rows.claim(NEWS, row(3), "") is Claim.WAITS
    assert await rows.wait(NEWS, ANN, 2) is Claim.STALE
    await bench.store.store.leases.release(NEWS, hold.token, hold.state)
    assert await rows.wait(NEWS, ANN, 3) is Claim.MINE
    assert await bench.state() == [(RowState.PENDING, 3)]


async def test_who_meets_pieces_of_an_older_command_kills(bench):
    rows = bench.rows
    await rows.claim(NEWS, row(2), "")
    await rows.begin_pieces(NEWS, ANN, 2, 0)
    assert await rows.claim(NEWS, row(3), "") is Claim.PIECES
    assert await rows.leave(NEWS, ANN, 3) is Claim.PIECES
    assert await rows.leave(NEWS, ANN, 1) is Claim.STALE
    assert await rows.leave(NEWS, ANN, 2) is Claim.MINE  # its own
    assert await bench.state() == [(RowState.LEFT, 2)]


@pytest.mark.parametrize("call", ["claim", "pieces", "activate", "leave"])
async def test_a_write_whose_answer_was_lost_counts(bench, call):
    rows = bench.rows
    if call in ("pieces", "activate"):
        await rows.claim(NEWS, row(1), "")
    seen = []

    def once(operation):
        if len(seen) < 2:
            seen.append(operation)
            lost(operation)

    bench.faults.after.append(once)
    outcome = await {
        "claim": lambda: rows.claim(NEWS, row(1), ""),
        "pieces": lambda: rows.begin_pieces(NEWS, ANN, 1, 0),
        "activate": lambda: rows.activate(NEWS, ANN, 1, Position(1, "e")),
        "leave": lambda: rows.leave(NEWS, ANN, 1),
    }[call]()
    assert seen
    assert outcome in (True, Claim.MINE)


async def test_presence_shows_active_rows_that_ask_for_it(bench):
    rows = bench.rows
    await rows.claim(NEWS, row(1), "")
    await rows.claim(NEWS, row(1)._replace(client=ClientId("b="), present=False), "")
    (item,) = [
        item
        for item in await scanned(bench)
        if item["pk"]["S"] == "S#news" and "pres" in item
    ]
    assert item["node"]["S"].startswith("gateway-")
    await rows.leave(NEWS, ANN, 2)
    assert not [i for i in await scanned(bench) if "pres" in i]


async def scanned(bench):
    client = bench.store.client
    return (await client.call("scan", {"TableName": client.table}))["Items"]

"""Admissions and leaves that meet, of several processes, with faults."""

from __future__ import annotations

import asyncio

import pytest

from service.core.errors import (
    CLOSE_CONNECTION_LIMIT,
    StoreError,
)
from service.core.model import ClientId, UserId
from service.stores.dynamodb.registry.records import gateway_node, owner_key, owner_of
from tests.stores.dynamodb.registry.fleet import admit, nothing
from tests.stores.dynamodb.support import Faults, lost, refusal, served, timed_out


@pytest.fixture
def emulator(ministack):
    """Return the emulator with atomic transactions that know their tokens."""
    return ministack


async def test_a_leave_that_failed_is_repeated(make_fleet, clock):
    fleet = await make_fleet({"timeout": 1.0})
    faults = Faults()
    one = await fleet.process(faults)
    await admit(one, "u", "a")
    faults.before.append(lambda operation: refusal("ThrottlingException"))
    with pytest.raises(StoreError):
        await one.leave("a")
    with pytest.raises(StoreError):
        await one.heartbeat()
    assert list(fleet.check().records) == ["a"]
    faults.before.clear()
    await one.heartbeat()
    assert nothing(fleet.check())


async def test_an_admission_of_unknown_outcome_is_taken_back(make_fleet, clock):
    fleet = await make_fleet({"timeout": 1.0})
    faults = Faults()
    one = await fleet.process(faults)

    def lost_transactions(operation):
        if operation == "TransactWriteItems":
            lost(operation)

    faults.after.append(lost_transactions)
    with pytest.raises(StoreError):
        await admit(one, "u", "a")
    assert list(fleet.check().records) == ["a"]  # it was done, and nobody was told
    faults.after.clear()
    await one.heartbeat()
    assert nothing(fleet.check())


async def test_an_admission_that_arrives_after_the_end_of_its_process_is_reaped(
    make_fleet,
):
    fleet = await make_fleet({"timeout": 4.9})
    faults = Faults()
    one, two = await fleet.process(faults), await fleet.process()
    sent = []

    def keep(operation):
        if operation == "TransactWriteItems":
            sent.append(faults.requests[-1][1])
            fleet.clock.ahead += 5  # the deadline passes
            timed_out(operation)

    faults.before.append(keep)
    with pytest.raises(StoreError):
        await admit(one, "u", "a")
    faults.before.clear()
    await one.leave("a")
    await one.close()
    fleet.boto.transact_write_items(**sent[0])
    assert await two.maintenance.reap() == 1
    assert nothing(fleet.check())


async def test_a_leave_that_meets_its_admission_wins(make_fleet):
    fleet = await make_fleet()
    one = await fleet.process()
    for number in range(10):
        entering = asyncio.create_task(admit(one, "u", f"c{number}"))
        await asyncio.sleep(0.002 * number)
        await one.leave(f"c{number}")
        await entering
    assert nothing(fleet.check())


async def test_a_leave_and_an_eviction_of_the_same_give_one_slot_back(make_fleet):
    fleet = await make_fleet(user=1)
    one, two = await fleet.process(), await fleet.process()
    for number in range(10):
        await admit(one, "u", f"a{number}")
        await asyncio.gather(admit(two, "u", f"b{number}"), one.leave(f"a{number}"))
        assert sum(fleet.check().counts.values()) == 1
        await two.leave(f"b{number}")
        assert nothing(fleet.check())


def meanwhile(faults, work):
    """Do *work* when the next transaction is about to be sent."""
    loop = asyncio.get_running_loop()

    def between(operation):
        if operation == "TransactWriteItems":
            faults.before.remove(between)
            asyncio.run_coroutine_threadsafe(work(), loop).result(30)

    faults.before.append(between)


async def test_two_admissions_that_read_the_same_book(make_fleet, clock):
    fleet = await make_fleet(user=2)
    faults = Faults()
    one, two = await fleet.process(faults), await fleet.process()
    for client in ("a", "b"):
        await admit(two, "u", client)
        clock.advance(1)
    meanwhile(faults, lambda: admit(two, "u", "c"))  # a goes for it
    assert await admit(one, "u", "d") == ["b"]
    assert sorted(fleet.check().records) == ["c", "d"]
    assert sorted(await two.evictions()) == ["a", "b"]


async def test_the_first_two_connections_of_a_user_at_once(make_fleet):
    fleet = await make_fleet()
    faults = Faults()
    one, two = await fleet.process(faults), await fleet.process()
    meanwhile(faults, lambda: admit(two, "u", "a"))
    assert await admit(one, "u", "b") == []
    assert sorted(fleet.check().books["U#u"]) == ["a", "b"]
    # And the last two: each finds a book that the other has changed.
    meanwhile(faults, lambda: two.leave("a"))
    await one.leave("b")
    assert nothing(fleet.check())


async def test_a_book_that_has_changed_is_not_written_over(make_fleet):
    fleet = await make_fleet()
    faults = Faults()
    one, two = await fleet.process(faults), await fleet.process()
    await admit(two, "u", "a")
    meanwhile(faults, lambda: admit(two, "u", "b"))
    assert await admit(one, "u", "c") == []
    assert sorted(fleet.check().books["U#u"]) == ["a", "b", "c"]


async def test_who_is_to_go_leaves_meanwhile(make_fleet, clock):
    fleet = await make_fleet(user=1)
    faults = Faults()
    one, two = await fleet.process(faults), await fleet.process()
    await admit(two, "u", "a")
    meanwhile(faults, lambda: two.leave("a"))
    assert await admit(one, "u", "b") == []
    assert list(fleet.check().records) == ["b"]


async def test_a_limit_that_was_lowered_holds_from_the_next_connect(make_fleet, clock):
    fleet = await make_fleet(user=30)
    one = await fleet.process()
    for number in range(30):
        await admit(one, "u", f"a{number:02}")
        clock.advance(1)
    fleet.limits = fleet.limits._replace(user=3)
    two = await fleet.process()
    evicted = await admit(two, "u", "b")
    assert evicted == [f"a{n:02}" for n in range(20)]  # a transaction has its bound
    assert await admit(two, "u", "c") == [f"a{n:02}" for n in range(20, 29)]
    assert sorted(fleet.check().books["U#u"]) == ["a29", "b", "c"]
    assert await two.total() == 3


async def test_a_jump_of_the_clock_loses_nothing_but_places(make_fleet, clock):
    fleet = await make_fleet()
    one, two = await fleet.process(), await fleet.process()
    for directory, client in ((one, "a"), (two, "b"), (one, "c"), (two, "d")):
        await admit(directory, "u", client)
        clock.advance(1)
    clock.advance(10 * 86400)
    # Everybody is late, and everybody finds everybody else dead.
    await asyncio.gather(one.maintenance.reap(), two.maintenance.reap())
    fleet.check()
    await asyncio.gather(one.heartbeat(), two.heartbeat())
    found = fleet.check()
    assert len(found.books["U#u"]) == 3
    for directory, client in ((one, "a"), (two, "b"), (one, "c"), (two, "d")):
        await directory.leave(client)
    assert nothing(fleet.check())


async def test_an_old_answer_to_a_touch_is_not_believed(make_fleet, clock):
    fleet = await make_fleet()
    faults = Faults()
    one = await fleet.process(faults)
    await admit(one, "u", "a")
    clock.advance(60)

    def old(operation):
        consistent = faults.requests[-1][1].get("ConsistentRead")
        return served("{}") if operation == "GetItem" and not consistent else None

    faults.before.append(old)
    await one.touch({"a": clock.wall()})
    assert await one.evictions() == []


async def test_a_shard_that_filled_meanwhile_is_not_the_end(make_fleet):
    fleet = await make_fleet({"client_limit": 3})  # shards 0 to 2, one each
    processes = [await fleet.process() for _ in range(3)]
    for _ in range(5):
        answers = await asyncio.gather(
            *[admit(p, f"u{n}", f"c{n}") for n, p in enumerate(processes)]
        )
        assert answers == [[], [], []]
        fleet.check()
        await asyncio.gather(*[p.leave(f"c{n}") for n, p in enumerate(processes)])
        assert nothing(fleet.check())


# Connections at the gateway, whose records are outside the transactions.


async def test_expired_entries_of_the_gateway_count_no_more(make_fleet, clock):
    fleet = await make_fleet(age=3600.0, user=2)
    one = await fleet.process()
    for client in ("a", "b"):
        await one.connections.admit("U#u", ClientId(client), gateway_node(client))
    assert fleet.check().books["U#u"].keys() == {"a", "b"}
    clock.advance(3601)
    await one.connections.admit("U#u", ClientId("c"), gateway_node("c"))
    found = fleet.contents()
    assert found.books["U#u"].keys() == {"c"}
    assert sum(found.counts.values()) == 1
    assert found.records.keys() == {"a", "b", "c"}  # the sweeper finds them
    for client in ("a", "b"):
        assert not await one.connections.withdraw(
            "U#u", ClientId(client), gateway_node(client)
        )
    assert fleet.check().records.keys() == {"c"}


async def test_connections_of_a_user_at_a_server_and_at_the_gateway(make_fleet, clock):
    fleet = await make_fleet(user=1)
    one = await fleet.process()
    node = gateway_node("a")
    await one.connections.admit("U#u", ClientId("a"), node)
    clock.advance(1)
    assert await admit(one, "u", "b") == ["a"]
    found = fleet.check()
    assert (found.records.keys(), found.rest) == ({"b"}, [(f"N#{node}", "E#a")])
    assert not await one.connections.withdraw("U#u", ClientId("a"), node)
    await one.nodes.delete_notice(node, ClientId("a"))
    clock.advance(1)
    admitted = await one.connections.admit("U#u", ClientId("a"), node)
    assert [each.client for each in admitted.evicted] == ["b"]
    assert await one.evictions() == ["b"]
    await one.leave("b")
    assert await one.connections.withdraw("U#u", ClientId("a"), node)
    assert nothing(fleet.check())


# Admissions that wait for each other are made together.


def transactions(faults: Faults) -> int:
    return [name for name, _ in faults.requests].count("TransactWriteItems")


async def test_connects_of_an_address_at_once_are_few_transactions(make_fleet):
    fleet = await make_fleet()
    faults = Faults()
    one = await fleet.process(faults)
    answers = await asyncio.gather(*(admit(one, "", f"c{n}") for n in range(60)))
    assert answers == [[]] * 60
    assert transactions(faults) == 4  # the first alone, then 25, 25 and 9
    assert len(fleet.check().records) == 60


async def test_connects_of_an_address_at_two_processes_at_once(make_fleet):
    # One by one they would take each other's turns, for longer than a call may take.
    fleet = await make_fleet(address=200)
    one, two = await fleet.process(), await fleet.process()
    answers = await asyncio.gather(
        *(
            admit(each, "", f"{n}-{index}")
            for n in range(75)
            for index, each in enumerate((one, two))
        )
    )
    assert answers == [[]] * 150
    assert len(fleet.check().records) == 150


async def test_no_more_of_an_address_than_may_be(make_fleet):
    fleet = await make_fleet(address=10)
    faults = Faults()
    one = await fleet.process(faults)
    answers = await asyncio.gather(*(admit(one, "", f"c{n}") for n in range(15)))
    assert answers == [[]] * 10 + [CLOSE_CONNECTION_LIMIT] * 5
    assert transactions(faults) == 2
    assert len(fleet.check().records) == 10


async def test_no_more_together_than_a_shard_has_room_for(make_fleet):
    fleet = await make_fleet({"client_limit": 128})  # two in each of the 64
    one = await fleet.process()
    answers = await asyncio.gather(*(admit(one, "", f"c{n}") for n in range(12)))
    assert answers == [[]] * 12
    assert max(fleet.check().counts.values()) <= 2


async def test_one_that_cannot_be_admitted_with_others_does_not_hold_them_up(
    make_fleet,
):
    fleet = await make_fleet()
    one = await fleet.process()
    owner, node = owner_of(UserId(""), "192.0.2.1"), one.nodes.name
    await one.connections.admit(owner, ClientId("c"), node)
    fleet.write("delete_item", Key=owner_key(owner))
    admitted = await asyncio.gather(
        *(one.connections.admit(owner, ClientId(name), node) for name in "abcd")
    )
    assert [each.record.client for each in admitted] == ["a", "b", "c", "d"]
    assert fleet.check().records.keys() == {"a", "b", "c", "d"}


async def test_one_that_gives_up_leaves_the_others_to_their_turns(make_fleet):
    fleet = await make_fleet()
    faults = Faults()
    one = await fleet.process(faults)
    loop = asyncio.get_running_loop()
    tasks = [asyncio.ensure_future(admit(one, "", name)) for name in "abc"]

    def give_up(operation):
        if operation == "TransactWriteItems" and transactions(faults) == 2:
            loop.call_soon_threadsafe(tasks[1].cancel)

    faults.before.append(give_up)
    a, b, c = await asyncio.gather(*tasks, return_exceptions=True)
    assert (a, c) == ([], [])
    assert isinstance(b, asyncio.CancelledError)
    faults.before.clear()
    await one.leave(ClientId("b"))
    assert fleet.check().records.keys() == {"a", "c"}

"""The directory, one call at a time, on the emulators with transactions."""

from __future__ import annotations

from service.core.errors import CLOSE_CONNECTION_LIMIT, TOO_MANY_REQUESTS_CLOSE
from tests.stores.dynamodb.registry.fleet import (
    admit,
    nothing,
    present,
    row_of,
    subscribe,
    unsubscribe,
)
from tests.stores.dynamodb.support import Faults, refusal


async def test_a_connection_is_counted_until_it_leaves(make_fleet):
    fleet = await make_fleet()
    one = await fleet.process()
    assert await admit(one, "u", "c1") == []
    found = fleet.check()
    assert (list(found.records), list(found.books)) == (["c1"], ["U#u"])
    assert await one.total() == 1
    await one.leave("c1")
    assert nothing(fleet.check())
    assert await one.total() == 0


async def test_entering_and_leaving_again_changes_nothing(make_fleet):
    fleet = await make_fleet()
    one = await fleet.process()
    await one.leave("c1")
    for _ in range(3):
        assert await admit(one, "u", "c1") == []
    assert await one.total() == 1
    fleet.check()
    for _ in range(3):
        await one.leave("c1")
    assert nothing(fleet.check())
    assert await one.total() == 0


async def test_the_fourth_takes_the_place_of_the_least_recently_active(
    make_fleet, clock
):
    fleet = await make_fleet()
    here, there = await fleet.process(), await fleet.process()
    for directory, client in ((here, "a"), (here, "b"), (there, "c")):
        assert await admit(directory, "u", client) == []
        clock.advance(1)
    await here.touch({"a": clock.wall()})
    clock.advance(1)
    assert await admit(there, "u", "d") == ["b"]
    assert sorted(fleet.check().books["U#u"]) == ["a", "c", "d"]
    assert await here.evictions() == ["b"]
    assert await here.evictions() == ["b"]  # until it has left
    assert await there.evictions() == []
    await here.leave("b")
    assert await here.evictions() == []
    for directory, client in ((here, "a"), (there, "c"), (there, "d")):
        await directory.leave(client)
    assert nothing(fleet.check())


async def test_who_is_active_here_is_known_without_a_write(make_fleet, clock):
    fleet = await make_fleet()
    faults = Faults()
    one = await fleet.process(faults)
    for client in ("a", "b", "c"):
        await admit(one, "u", client)
        clock.advance(1)
    before = fleet.check().books["U#u"]
    faults.before.append(
        lambda operation: (
            refusal("AccessDeniedException") if operation == "UpdateItem" else None
        )
    )
    await one.touch({"a": clock.wall()})
    assert fleet.check().books["U#u"] == before
    assert await admit(one, "u", "d") == ["b"]


async def test_activity_is_written_only_where_somebody_may_have_to_go(
    make_fleet, clock
):
    fleet = await make_fleet()
    faults = Faults()
    one = await fleet.process(faults)
    await admit(one, "u", "c1")
    clock.advance(60)
    faults.calls.clear()
    await one.touch({"c1": clock.wall()})
    assert faults.calls == ["GetItem"]
    await admit(one, "u", "c2")
    clock.advance(60)
    faults.calls.clear()
    await one.touch({"c1": clock.wall(), "c2": clock.wall() - 60})
    assert faults.calls == ["GetItem", "UpdateItem"]  # c2 was not active since
    await one.touch({"c1": clock.wall()})
    assert faults.calls == ["GetItem", "UpdateItem"]
    active = fleet.check().books["U#u"]["c1"]["M"]["active"]["N"]
    assert active == str(int(clock.wall() * 1000))


async def test_a_touch_finds_out_that_a_place_is_lost(make_fleet, clock):
    fleet = await make_fleet(user=1)
    here, there = await fleet.process(), await fleet.process()
    await admit(here, "u", "a")
    clock.advance(1)
    assert await admit(there, "u", "b") == ["a"]
    (notice,) = [i for i in fleet.items() if i["sk"]["S"] == "E#a"]
    fleet.write("delete_item", Key={"pk": notice["pk"], "sk": notice["sk"]})
    assert await here.evictions() == []
    await here.touch({"a": clock.wall()})
    assert await here.evictions() == ["a"]


async def test_a_policy_of_rejecting_closes_the_newcomer(make_fleet, clock):
    fleet = await make_fleet(policy="reject", user=2)
    here, there = await fleet.process(), await fleet.process()
    assert await admit(here, "u", "a") == []
    assert await admit(there, "u", "b") == []
    assert await admit(there, "u", "c") is CLOSE_CONNECTION_LIMIT
    assert sorted(fleet.check().records) == ["a", "b"]
    assert await admit(there, "v", "d") == []
    # Connections of dead nodes keep no other out.
    clock.advance(41)
    await there.heartbeat()
    third = await fleet.process()
    await third.maintenance.reap()
    assert await admit(third, "u", "e") == []


async def test_there_is_room_for_as_many_as_the_limit_says(make_fleet):
    fleet = await make_fleet({"client_limit": 5})
    one = await fleet.process()
    for number in range(5):
        assert await admit(one, f"u{number}", f"c{number}") == []
    assert await admit(one, "u", "c") is TOO_MANY_REQUESTS_CLOSE
    assert len(fleet.check().records) == 5
    await one.leave("c3")
    assert await admit(one, "u", "c") == []
    # One in, one out: a user at his limit does not need more room.
    for number in range(3):
        await one.leave(f"c{number}")
        assert await admit(one, "u", f"d{number}") == ([] if number < 2 else ["c"])
    fleet.check()


async def test_without_a_user_addresses_are_what_is_limited(make_fleet, clock):
    fleet = await make_fleet(address=2)
    one = await fleet.process()
    assert await admit(one, "", "a", "192.0.2.1") == []
    clock.advance(1)
    assert await admit(one, "", "b", "192.0.2.1") == []
    assert await admit(one, "", "c", "192.0.2.2") == []
    # They are strangers: none of them is evicted for another.
    assert await admit(one, "", "d", "192.0.2.1") is CLOSE_CONNECTION_LIMIT
    found = fleet.check()
    assert sorted(found.books["A#192.0.2.1"]) == ["a", "b"]
    assert sorted(found.books["A#192.0.2.2"]) == ["c"]


async def test_what_has_expired_does_not_count_while_it_is_still_there(
    make_fleet, clock
):
    fleet = await make_fleet(age=100.0)
    one = await fleet.process()
    for client in ("a", "b", "c"):
        assert await admit(one, "u", client) == []
    await subscribe(one, "a", "news")
    clock.advance(100)
    assert len(fleet.contents().records) == 3
    assert await present(one, "news") == []
    assert await admit(one, "u", "d") == []  # nobody had to go
    assert list(fleet.contents().books["U#u"]) == ["d"]
    assert await one.total() == 4  # until they leave or are removed
    for client in ("a", "b", "c"):
        await one.leave(client)
    await unsubscribe(one, "a", "news")
    assert list(fleet.check().records) == ["d"]
    assert await one.total() == 1


async def test_presence_is_known_in_all_processes(make_fleet):
    fleet = await make_fleet()
    here, there = await fleet.process(), await fleet.process()
    await admit(here, "u", "a")
    await admit(there, "v", "b")
    await subscribe(here, "a", "news")
    await subscribe(here, "a", "other")
    await subscribe(there, "b", "news", "v")
    assert await present(here, "news") == [("a", "u"), ("b", "v")]
    assert await present(there, "other") == [("a", "u")]
    assert await there.cluster.present("other") == [row_of(here, "a", "other")]
    lost = row_of(here, "a", "other")._replace(lost=7, present=False, announced=True)
    await here.cluster.enter([lost])
    assert await there.cluster.present("other") == [lost]
    for _ in range(2):
        await unsubscribe(here, "a", "other")
        assert await present(there, "other") == []
    await unsubscribe(here, "a", "news")
    assert await present(there, "news") == [("b", "v")]
    await unsubscribe(there, "b", "news")
    for client, process in (("a", here), ("b", there)):
        await process.leave(client)
    assert nothing(fleet.check())


async def test_a_node_that_was_taken_for_dead_admits_its_connections_again(
    make_fleet, clock
):
    fleet = await make_fleet(user=2)
    away, other = await fleet.process(), await fleet.process()
    for client in ("a", "b"):
        await admit(away, "u", client)
        await subscribe(away, client, "news")
        clock.advance(1)
    clock.advance(41)
    await other.heartbeat()
    await other.maintenance.reap()
    assert nothing(fleet.check())
    await admit(other, "u", "c")
    clock.advance(1)
    await away.heartbeat()  # a and b are let in as if they came now: c has to go
    found = fleet.check()
    assert sorted(found.records) == ["a", "b"]
    assert await other.evictions() == ["c"]
    await other.leave("c")
    for client in ("a", "b"):
        await away.leave(client)
    assert nothing(fleet.check())


async def test_nothing_is_left_after_the_last_process(make_fleet):
    fleet = await make_fleet()
    one, two = await fleet.process(), await fleet.process()
    await admit(one, "u", "a")
    await admit(two, "u", "b")
    await subscribe(one, "a", "news")
    await one.leave("a")
    await two.leave("b")
    await one.close()  # a row is left: it is marked dead
    await two.maintenance.reap()
    fleet.clock.ahead += 3601
    await two.heartbeat()
    await two.maintenance.reap()
    await two.close()
    left = {item["pk"]["S"][:2] for item in fleet.items()}
    assert left == {"G#", "U#"}  # the user's item is deleted by its time to live
    assert nothing(fleet.check())

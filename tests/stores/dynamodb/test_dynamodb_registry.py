"""Connections in the table, one call at a time, on every emulator that has
transactions."""

from __future__ import annotations

import pytest

from tests.stores.dynamodb.fleet import Fleet, admit


@pytest.fixture(params=["ministack", "moto"])
def emulator(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
async def make_fleet(emulator, store_clock):
    made = []

    async def make(settings=None, **limits):
        fleet = Fleet(emulator.settings(**settings or {}), store_clock, **limits)
        made.append(fleet)
        return await fleet.create()

    yield make
    for fleet in made:
        await fleet.close()


async def test_a_connection_is_counted_until_it_leaves(make_fleet):
    fleet = await make_fleet()
    one = await fleet.process()
    assert await admit(one, "u", "c1") == []
    found = fleet.check()
    assert list(found.records) == ["c1"]
    assert list(found.books) == ["U#u"]
    assert await one.total() == 1
    await one.leave("c1")
    found = fleet.check()
    assert (found.records, found.books, found.rest) == ({}, {}, [])
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
    assert await there.evictions() == []
    await here.leave("b")
    assert await here.evictions() == []
    for directory, client in ((here, "a"), (there, "c"), (there, "d")):
        await directory.leave(client)
    found = fleet.check()
    assert (found.records, found.books, found.rest) == ({}, {}, [])
    assert await here.total() == 0

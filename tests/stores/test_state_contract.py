"""Contract of the State port, run on every implementation."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.core.errors import StoreUnavailable
from service.core.ports import StateEntry

WALL = 1_700_000_000.0


async def entries(state, kind="t"):
    return sorted(await state.entries(kind))


async def test_a_value_is_there_until_it_is_taken(state):
    await state.put("t", "k", "v", 60)
    assert await entries(state) == [StateEntry("k", "v", WALL + 60)]
    assert await state.take("t", "k") == "v"
    assert await state.take("t", "k") is None
    assert await entries(state) == []


async def test_what_was_never_put_is_not_there(state):
    assert await state.take("t", "k") is None
    assert await entries(state) == []


async def test_a_put_replaces_value_and_end(state):
    await state.put("t", "k", "old", 60)
    await state.put("t", "k", "new", 5)
    assert await entries(state) == [StateEntry("k", "new", WALL + 5)]
    assert await state.take("t", "k") == "new"
    assert await state.take("t", "k") is None


async def test_kinds_are_apart(state):
    await state.put("a", "k", "1", 60)
    await state.put("b", "k", "2", 60)
    assert await entries(state, "a") == [StateEntry("k", "1", WALL + 60)]
    assert await state.take("a", "k") == "1"
    assert await entries(state, "b") == [StateEntry("k", "2", WALL + 60)]


@pytest.mark.parametrize("ttl", [0.5, 60, 86400])
async def test_an_entry_is_gone_at_its_end_and_not_before(state, clock, ttl):
    await state.put("t", "listed", "v", ttl)
    await state.put("t", "taken", "v", ttl)
    await state.put("t", "late", "v", ttl)
    clock.advance(ttl - 0.01)
    assert len(await entries(state)) == 3
    assert await state.take("t", "taken") == "v"
    clock.advance(0.01)
    assert await entries(state) == []
    assert await state.take("t", "late") is None
    assert await state.take("t", "listed") is None


async def test_a_value_put_again_after_its_end_is_there(state, clock):
    await state.put("t", "k", "old", 1)
    clock.advance(1)
    await state.put("t", "k", "new", 1)
    assert await state.take("t", "k") == "new"


@pytest.mark.parametrize("ttl", [0, -1])
async def test_what_has_no_time_is_not_kept(state, ttl):
    await state.put("t", "k", "v", 60)
    await state.put("t", "k", "v", ttl)
    assert await state.take("t", "k") is None


async def test_fifty_tasks_are_given_one_value_once(state):
    for n in range(10):
        await state.put("t", f"k{n}", f"v{n}", 60)
    for n in range(10):
        found = await asyncio.gather(*[state.take("t", f"k{n}") for _ in range(50)])
        assert [v for v in found if v is not None] == [f"v{n}"]


async def test_fifty_threads_are_given_one_value_once(state):
    loop = asyncio.get_running_loop()

    def take(_):
        return asyncio.run_coroutine_threadsafe(state.take("t", "k"), loop).result(30)

    with ThreadPoolExecutor(50) as pool:
        for _ in range(5):
            await state.put("t", "k", "v", 60)
            asked = [loop.run_in_executor(pool, take, n) for n in range(50)]
            found = await asyncio.gather(*asked)
            assert [v for v in found if v is not None] == ["v"]


async def test_sizes_are_bytes_and_bounded(state):
    await state.put("t", "é" * 512, "é" * 2048, 60)
    assert await state.take("t", "é" * 512) == "é" * 2048
    for key, value in [("é" * 512 + "x", "v"), ("k", "é" * 2048 + "x"), ("\ud800", "")]:
        with pytest.raises(ValueError, match=r"no more than|surrogates"):
            await state.put("t", key, value, 60)
    with pytest.raises(ValueError, match="no more than 1024"):
        await state.take("t", "k" * 1025)
    assert await entries(state) == []


async def test_any_text_comes_back_as_it_was(state):
    for key, value in [("", ""), ("a b\n", '{"a":"\\u0000"}'), ("#%/😀", "\x00\x7f")]:
        await state.put("t", key, value, 60)
        assert await state.take("t", key) == value


async def test_more_than_a_megabyte_of_entries_is_listed(state):
    names = [f"k{n:03}" for n in range(300)]
    for some in range(0, 300, 50):
        puts = [state.put("t", n, "v" * 4000, 60) for n in names[some : some + 50]]
        await asyncio.gather(*puts)
    assert [kept.key for kept in await entries(state)] == names


async def test_a_closed_state_refuses(state, state_closed):
    await state.put("t", "k", "v", 60)
    await state_closed()
    for call in (state.put("t", "k", "v", 60), state.take("t", "k"), entries(state)):
        with pytest.raises(StoreUnavailable):
            await call


async def test_entries_outlive_the_process(reopen_state):
    state = await reopen_state()
    await state.put("t", "k", "v", 60)
    await state.put("t", "taken", "v", 60)
    await state.take("t", "taken")
    state = await reopen_state()
    assert await entries(state) == [StateEntry("k", "v", WALL + 60)]

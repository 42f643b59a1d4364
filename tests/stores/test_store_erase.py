"""Contract of the Store port, run on every implementation: erasing."""

from __future__ import annotations

import asyncio

from service.core.model import Appended
from service.core.ports import History
from tests.stores.support import CHAT

MINE = '{"user":"me",'


def info(user, client="c"):
    return f'{{"user":"{user}","client":"{client}"}}'


def shape(page):
    return [(p.offset, p.time) for p in page.publications]


async def test_erasing_blanks_data_and_info_and_keeps_the_order(bench):
    await bench.append("a", '"mine"', info=info("me"), tags='{"t":"1"}')
    await bench.append("a", '"other"', info=info("other"))
    await bench.append("a", '"of nobody"')
    await bench.append("b", '"mine too"', info=info("me", "d"))
    before = await bench.read("a")
    was = shape(before)
    assert await bench.store.erase(MINE) == 2
    page = await bench.read("a")
    assert shape(page) == was
    assert page.top == before.top
    found = [(p.data, p.info, p.tags) for p in page.publications]
    assert found == [
        ("null", None, None),
        ('"other"', info("other"), None),
        ('"of nobody"', None, None),
    ]
    assert [p.data for p in (await bench.read("b")).publications] == ["null"]
    assert (await bench.append("a")).position == (4, before.top.epoch)
    assert await bench.store.erase(MINE) == 0


async def test_only_who_is_meant_is_erased(bench):
    others = ["m", "mee", "Me", "me ", "ME", "me\\u0000", 'me\\",', "%", "m_"]
    for user in others:
        await bench.append("a", f'"{user}"', info=info(user))
    assert await bench.store.erase(MINE) == 0
    found = [p.info for p in (await bench.read("a")).publications]
    assert found == [info(user) for user in others]
    for user in others:
        assert await bench.store.erase(f'{{"user":"{user}",') == 1


async def test_what_is_in_memory_is_erased_too(bench):
    await bench.append("a", '"mine"', info=info("me"))
    await bench.read("a")
    assert await bench.store.erase(MINE) == 1
    peeked = bench.store.peek("a", CHAT, 0, -1)
    assert peeked is None or [p.data for p in peeked.publications] == ["null"]
    assert [p.data for p in (await bench.read("a", 0)).publications] == ["null"]


def whose(n):
    return "me" if n % 3 else "you"


async def test_many_are_erased_while_others_append(bench):
    large = History(5000, 3600.0)
    for first in range(0, 1500, 150):  # in waves: each has the store's time limit
        outcomes = await asyncio.gather(
            *[
                bench.append(f"c{n % 7}", str(n), large, info=info(whose(n)))
                for n in range(first, first + 150)
            ]
        )
        assert all(isinstance(outcome, Appended) for outcome in outcomes)
    erasing = asyncio.ensure_future(bench.store.erase(MINE))
    appended = []
    while not erasing.done():
        outcome = await bench.append("c0", '"new"', large, info=info("you"))
        appended.append(outcome.position.offset)
    assert await erasing == 1000
    top = len(range(0, 1500, 7))
    assert appended == list(range(top + 1, top + 1 + len(appended)))
    left = 0
    for n in range(7):
        page = await bench.read(f"c{n}", history=large)
        offsets = [p.offset for p in page.publications]
        assert offsets == list(range(1, len(offsets) + 1))
        for one in page.publications:
            assert (one.data == "null") == (one.info is None)
            left += one.info == info("you")
    assert left == 500 + len(appended)


async def test_reads_during_an_erase_are_dense(bench):
    await asyncio.gather(
        *[bench.append("a", str(n), info=info("me")) for n in range(100)]
    )

    async def reader():
        pages = []
        for _ in range(20):
            pages.append(await bench.read("a"))
            await asyncio.sleep(0)
        return pages

    reading = [asyncio.ensure_future(reader()) for _ in range(5)]
    await bench.store.erase(MINE)
    after = await bench.read("a")
    assert {p.data for p in after.publications} == {"null"}
    for pages in await asyncio.gather(*reading):
        for page in pages:
            assert [p.offset for p in page.publications] == list(range(1, 101))
    # Nothing that was read before is back in the cache.
    assert {p.data for p in (await bench.read("a")).publications} == {"null"}

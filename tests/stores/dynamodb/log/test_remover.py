"""Erasure of publications larger than an item."""

from __future__ import annotations

import random


async def test_large_publications_are_erased_too(bench, other):
    noise = "".join(random.Random(2).choices("0123456789abcdef", k=800_000))
    await bench.append("a", f'"{noise}"', info='{"user":"u"}')
    await bench.append("a", "2", info='{"user":"v"}')
    assert await bench.store.erase('{"user":"u"') == 1
    assert await bench.store.erase('{"user":"u"') == 0
    page = await other.read("a", 0)
    assert [(p.data, p.info) for p in page.publications] == [
        ("null", None),
        ("2", '{"user":"v"}'),
    ]

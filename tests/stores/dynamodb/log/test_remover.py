"""Removal that fails half-way, and erasure of publications larger than an item."""

from __future__ import annotations

import random

import pytest

from service.core.errors import StoreError
from tests.stores.dynamodb.support import refusal


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


async def test_a_removal_that_stops_half_way_is_finished_by_a_repeat(bench, other):
    await bench.fill("a", 30)

    def fault(operation):
        if operation == "BatchWriteItem":
            return refusal("AccessDeniedException")
        return None

    bench.faults.before.append(fault)
    with pytest.raises(StoreError):
        await bench.store.remove("a")
    # Hidden from all readers, but not deleted: the promise is "all, some or none".
    assert await bench.offsets("a") == await other.offsets("a") == []
    assert await batches(bench) != []
    bench.faults.before.remove(fault)
    await bench.store.remove("a")
    assert await batches(bench) == []
    assert (await bench.append("a")).position.offset == 31


async def batches(bench):
    client = bench.store.client
    answer = await client.call("scan", {"TableName": client.table})
    return [i for i in answer["Items"] if i["pk"]["S"].startswith("L#")]

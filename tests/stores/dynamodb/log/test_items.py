"""Items of the log: epochs of a restored table, parts, compression."""

from __future__ import annotations

import asyncio
import random

from service.core.model import Position
from tests.stores.dynamodb.log.support import stored
from tests.stores.dynamodb.support import (
    Faults,
)


async def test_a_restored_table_is_in_other_epochs(ministack, bench, open_bench, clock):
    first = (await bench.append("a", "0")).position
    unpublished = (await bench.read("b")).top
    boto = bench.faults.connect(bench.store.settings)
    copy = await open_bench(Faults(), table=ministack.settings().table)
    for item in boto.scan(TableName=bench.store.settings.table)["Items"]:
        boto.put_item(TableName=copy.store.settings.table, Item=item)
    top = (await copy.read("a")).top
    assert top.offset == 0 and top.epoch != first.epoch
    assert (await copy.append("a", "1")).position == Position(1, top.epoch)
    assert (await copy.read("b")).top.epoch != unpublished.epoch


async def test_a_publication_larger_than_an_item_is_stored_in_parts(bench, other):
    noise = "".join(random.Random(1).choices("0123456789abcdef", k=800_000))
    for data in ("1", f'"{noise}"', "3"):
        await bench.append("a", data)
    page = await other.read("a", 0)
    assert [len(p.data) for p in page.publications] == [1, 800_002, 1]
    page = await other.read("a", None, 2, reverse=True)
    assert [p.offset for p in page.publications] == [3, 2]
    assert page.publications[1].data == f'"{noise}"'
    await other.store.erase('{"user":"nobody"')
    assert await other.store.erase("") == 0


async def test_batches_are_deflated_when_it_pays(bench, other):
    text = '"' + "the same words again and again, " * 8 + '"'
    await asyncio.gather(*[bench.append("a", text) for n in range(32)])
    await bench.append("a", text)
    batches = [
        action["Put"]["Item"]
        for operation, request in bench.faults.requests
        if operation == "TransactWriteItems"
        for action in request["TransactItems"]
        if "Put" in action
    ]
    assert ["z" in item for item in batches] == [True, False]
    assert await stored(other) == [text] * 33

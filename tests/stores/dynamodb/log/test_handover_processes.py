"""32 processes publish to one channel over a real broker; their owner is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import pytest

from service.core.model import Channel
from service.stores.dynamodb.log.items import head_key
from tests.harness.valkey import shared
from tests.harness.writers import CHANNEL, HISTORY, Writers
from tests.stores.dynamodb.support import TableStore

COUNT = 60  # of each process
BEFORE = 300  # of all of them, before the owner is killed


async def published(store):
    """Return what is in the log, by offset; the offsets are dense."""
    found = {}
    while True:
        page = await store.read(CHANNEL, HISTORY, len(found), 2000)
        for publication in page.publications:
            assert publication.offset == len(found) + 1
            found[publication.offset] = json.loads(publication.data)[0]
        if len(found) == page.top.offset:
            return found


async def head(store):
    request = {"TableName": store.client.table, "Key": head_key(Channel(CHANNEL))}
    request["ConsistentRead"] = True
    return (await store.client.call("get_item", request)).get("Item")


async def reached(store, top):
    """Return HEAD when it has this top."""
    async with asyncio.timeout(60):
        while (item := await head(store)) is None or int(item["top"]["N"]) < top:
            await asyncio.sleep(0.01)
    return item


@pytest.mark.slow
@pytest.mark.requirement("R12")
async def test_publications_of_32_processes_are_dense_ordered_and_once(
    ministack, store_clock
):
    settings = ministack.settings(connections=4, timeout=20.0)
    store = TableStore(settings, store_clock)
    await store.start(lambda batch: None)
    writers = Writers(settings, ministack.credentials, shared(), count=COUNT)
    try:
        writers.begin()
        owner = (await reached(store, BEFORE))["by"]["S"].rpartition(".")[0]
        killed = int(owner.removeprefix("writer"))
        os.kill(writers.pids[killed], signal.SIGKILL)
        await asyncio.to_thread(writers.wait)
    finally:
        writers.close()
    assert len(writers.results) == 31
    again = await reached(store, BEFORE)
    store_clock.ahead += 1
    log = await published(store)
    await store.close()
    assert not again["by"]["S"].startswith(f"{owner}.")
    # Each is there once, and where its process was told.
    assert len(set(log.values())) == len(log)
    for offset, _, name in writers.acknowledged():
        assert log[offset] == name
    # What nobody was told of is of the process that was killed, or was refused.
    told = {name for _, _, name in writers.acknowledged()}
    refused = sum(len(each["failed"]) for each in writers.results)
    others = [
        n for n in log.values() if n not in told and n.split("-")[0] != f"{killed}"
    ]
    assert len(others) <= refused
    order = {}
    for name in log.values():
        publisher, _, serial = name.rpartition("-")
        assert int(serial) > order.get(publisher, -1)
        order[publisher] = int(serial)
    assert len(order) == 32
    handed_over = sum(each["handed_over"] for each in writers.results)
    assert handed_over > 0

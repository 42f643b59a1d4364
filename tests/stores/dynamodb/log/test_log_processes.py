"""Several processes that publish to one channel at once."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest

from tests.harness.process import environment, launched
from tests.stores.dynamodb.log.publishers import HISTORY
from tests.stores.dynamodb.support import TableStore
from tests.stores.support import Bench


@pytest.fixture
def spawn():
    started = []

    def spawn(**given):
        process = subprocess.Popen(
            launched(
                sys.executable,
                "-m",
                "tests.stores.dynamodb.log.publishers",
                json.dumps(given),
            ),
            env=environment({}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield spawn
    for process in started:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.mark.parametrize(
    ("processes", "publishers", "count"),
    [
        (1, 1, 40),
        (2, 4, 25),
        pytest.param(4, 8, 25, marks=pytest.mark.slow),
    ],  # 1, 8 and 32 publishers
)
async def test_offsets_are_dense_and_each_publishers_order_is_kept(
    ministack, store_clock, clock, spawn, processes, publishers, count
):
    settings = ministack.settings(timeout=60.0)
    store = TableStore(settings, store_clock)
    bench = await Bench(store, clock).start()
    given = {
        "settings": msgspec.to_builtins(settings),
        "publishers": publishers,
        "count": count,
        "channel": "shared",
    }
    running = [spawn(process=number, **given) for number in range(processes)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.close()
    answers = []
    for process in running:
        answers.append(json.loads(process.stdout.readlines()[-1]))
        assert process.wait() == 0
    total = processes * publishers * count
    page = await bench.read("shared", 0, history=HISTORY)
    data = {p.offset: json.loads(p.data) for p in page.publications}
    assert [p.offset for p in page.publications] == list(range(1, total + 1))
    assert page.top.offset == total
    # Each was told where it is, and nobody else's is there.
    every = [one for answer in answers for one in answer["outcomes"]]
    assert len(every) == processes * publishers
    for outcomes in every:
        offsets = [offset for offset, _, _ in outcomes]
        assert offsets == sorted(offsets)
        assert [data[offset] for offset in offsets] == [key for _, _, key in outcomes]
        assert all(fresh for _, fresh, _ in outcomes)
    assert sorted(o for one in every for o, _, _ in one) == list(range(1, total + 1))
    # Each process was told of its own commits, once and in order.
    for answer in answers:
        told = [offset for offset, _ in answer["told"]]
        assert told == sorted(set(told))
        assert len(told) == publishers * count
    await store.close()


@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_process_that_dies_between_two_calls_loses_nothing(
    ministack, store_clock, clock, spawn, when, number
):
    settings = ministack.settings(timeout=60.0)
    store = TableStore(settings, store_clock)
    bench = await Bench(store, clock).start()
    given = {
        "settings": msgspec.to_builtins(settings),
        "process": 0,
        "publishers": 3,
        "count": 8,
        "channel": "shared",
    }
    dying = spawn(**given, crash=[when, number])
    assert dying.stdout.readline() == "ready\n"
    dying.stdin.close()
    acknowledged = [json.loads(line) for line in dying.stdout]
    assert dying.wait() == -9
    data = await contents(bench)
    assert all(data[offset] == key for offset, key in acknowledged)
    # The publishers come back, in another process, and repeat all that they had.
    again = spawn(**given)
    again.stdin.close()
    answer = json.loads(again.stdout.readlines()[-1])
    assert again.wait() == 0
    data = await contents(bench)
    assert len(set(data.values())) == len(data) == 24  # each exactly once
    for outcomes in answer["outcomes"]:
        assert [data[offset] for offset, _, _ in outcomes] == [
            k for _, _, k in outcomes
        ]
    assert all(data[offset] == key for offset, key in acknowledged)
    await store.close()


async def contents(bench):
    """Return what is stored, by offset; the offsets are dense."""
    bench.store.clock.ahead += 0.11  # what was read before is not believed any more
    page = await bench.read("shared", 0, history=HISTORY)
    assert [p.offset for p in page.publications] == list(range(1, page.top.offset + 1))
    return {p.offset: json.loads(p.data) for p in page.publications}

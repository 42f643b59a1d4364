"""The store across a kill of the process that writes, at random moments."""

from __future__ import annotations

import random

from tests.clock import VirtualClock
from tests.stores.sqlite.publisher import HISTORY
from tests.stores.sqlite.support import publisher
from tests.stores.support import Bench, on_disk


async def test_kill_loses_nothing_that_was_acknowledged(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    acknowledged = {"c0": {}, "c1": {}, "c2": {}}
    epochs = {}
    for _ in range(8):
        process = await publisher(tmp_path)
        lines = []
        for _ in range(rng.randrange(1, 400)):
            lines.append(await process.stdout.readline())
        process.kill()
        rest, _ = await process.communicate()
        await note(b"".join(lines) + rest, acknowledged, epochs, tmp_path)
    assert sum(map(len, acknowledged.values())) > 100


async def note(output, acknowledged, epochs, tmp_path):
    for line in output.decode().splitlines(keepends=True):
        if line.endswith("\n"):
            channel, offset, name = line.split()
            assert int(offset) not in acknowledged[channel], "given twice"
            acknowledged[channel][int(offset)] = name
    bench = await Bench(on_disk(tmp_path, VirtualClock()), VirtualClock()).start()
    for channel, known in acknowledged.items():
        page = await bench.read(channel, history=HISTORY)
        stored = {p.offset: p.data for p in page.publications}
        assert list(stored) == list(range(1, page.top.offset + 1))
        assert known.items() <= stored.items()
        if known:
            assert epochs.setdefault(channel, page.top.epoch) == page.top.epoch
    await bench.store.close()

"""Erased texts are in no byte of the store's files, nor of a backup made afterwards."""

from __future__ import annotations

import asyncio
import random
import sqlite3

import pytest

from service.core.errors import StoreUnavailable
from service.core.ports import History
from service.settings import StoreSettings
from service.stores.sqlite.backup import backup
from tests.stores.support import CHAT, Bench, on_disk

MINE = '{"user":"me",'
SHORT = History(100, 10.0)  # s
SEEDS = range(4)


def info(user):
    return f'{{"user":"{user}","client":"client-of-{user}"}}'


def left(tmp_path, texts):
    """Return which of *texts* are in the files of the store or in a new backup."""
    copy = tmp_path / "copy.db"
    copy.unlink(missing_ok=True)
    backup(StoreSettings(path=str(tmp_path / "store.db")), str(copy))
    files = [*sorted(tmp_path.glob("store.db*")), copy]
    assert len(files) >= 5, files  # the file, its log, its index, its lock, the copy
    found = b"\0".join(file.read_bytes() for file in files)
    return [text for text in texts if text.encode() in found]


async def publish(bench, user, count, history=CHAT, channel="a", size=1):
    texts = [f"secret of {user} {channel} {n:03}." for n in range(count)]
    for text in texts:
        await bench.append(channel, f'"{text * size}"', history, info=info(user))
    return [*texts, f"client-of-{user}"]


async def nothing(bench):
    pass


async def append(bench):
    await publish(bench, "other", 5)


async def remove(bench):
    await bench.store.remove("a")


async def trim(bench):
    await publish(bench, "other", 250)


async def expire(bench):
    bench.clock.advance(60.0)
    await bench.sweep()


async def erase(bench):
    await bench.store.erase('{"user":"first",')


ORDERS = [
    (nothing, append),
    (erase, append),
    (remove, append),
    (erase, remove),
    (trim, erase),
    (expire, append),
    (erase, expire),
    (erase, trim),
]


@pytest.mark.parametrize("size", [1, 400], ids=["small", "large"])
@pytest.mark.parametrize("before, after", ORDERS)
async def test_nothing_is_left(tmp_path, clock, before, after, size):
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    await publish(bench, "first", 5, size=size)
    await before(bench)  # so that it meets what an erasure leaves
    texts = await publish(bench, "me", 20, SHORT, size=size)
    texts += await publish(bench, "me", 5, SHORT, channel="b", size=size)
    await before(bench)
    assert left(tmp_path, ["secret of me b 004"]) or before is expire
    await bench.store.erase(MINE)
    assert left(tmp_path, texts) == []
    await after(bench)
    assert left(tmp_path, texts) == []
    await bench.store.close()


async def test_two_erasures_at_once(tmp_path, clock):
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    mine = await publish(bench, "me", 300)
    other = await publish(bench, "other", 300)
    erasing = [
        asyncio.create_task(bench.store.erase(MINE)),
        asyncio.create_task(bench.store.erase('{"user":"other",')),
        asyncio.create_task(bench.store.erase(MINE)),
    ]
    await publish(bench, "third", 5)
    await asyncio.gather(*erasing)
    assert left(tmp_path, mine + other) == []
    assert left(tmp_path, ["secret of third a 004"])
    await bench.store.close()


async def test_keys_and_state_that_have_gone_are_erased_too(tmp_path, clock):
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    await bench.append("a", idempotency_key="key of me")
    await bench.store.state.put("ticket", "ticket of me", "value of me", 60.0)
    await bench.store.state.put("ticket", "taken of me", "value taken", 60.0)
    await bench.store.state.take("ticket", "taken of me")
    clock.advance(600.0)
    await bench.sweep()
    await bench.store.erase(MINE)
    texts = ["key of me", "ticket of me", "value of me", "taken of me", "value taken"]
    assert left(tmp_path, texts) == []
    await bench.store.close()


async def test_an_erasure_is_not_done_while_another_process_reads_the_log(
    tmp_path, clock
):
    bench = await Bench(on_disk(tmp_path, clock, lock_timeout=0.05), clock).start()
    texts = await publish(bench, "me", 3)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM publications").fetchall()
    with pytest.raises(StoreUnavailable, match="another process reads"):
        await bench.store.erase(MINE)
    assert left(tmp_path, texts) == texts
    other.execute("ROLLBACK")
    other.close()
    assert await bench.store.erase(MINE) == 0  # nothing is left to blank
    assert left(tmp_path, texts) == []
    await bench.store.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_orders(tmp_path, clock, seed):
    """Small rows move from page to page; copies of them must not stay behind."""
    print("seed", seed)
    rng = random.Random(seed)
    bench = await Bench(on_disk(tmp_path, clock), clock).start()
    gone: list[str] = []
    texts: dict[str, list[str]] = {"a": [], "b": [], "c": []}
    for step in range(60):
        done = []
        for number in range(rng.randrange(30)):
            user = rng.choice("abc")
            text = f"<{user} {step:03} {number:03}>"
            texts[user].append(text)
            channel = f"channel {rng.randrange(10)}"
            data = f'"{text * rng.randrange(1, 30)}"'
            done.append(bench.append(channel, data, info=info(user)))
        await asyncio.gather(*done)
        if rng.random() < 0.3:
            await bench.store.remove(f"channel {rng.randrange(10)}")
        if rng.random() < 0.1:
            user = rng.choice("abc")
            await bench.store.erase(f'{{"user":"{user}",')
            gone += texts[user]
            texts[user] = []
            assert left(tmp_path, gone) == []
    await bench.store.erase('{"user":')
    gone += texts["a"] + texts["b"] + texts["c"]
    assert left(tmp_path, gone) == []
    await bench.store.close()

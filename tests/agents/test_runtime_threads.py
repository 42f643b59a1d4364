"""Threads of a running service: what is written is followed, kept and found again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from service.core.clock import SystemClock
from service.core.hooks import Handlers
from service.core.model import Position
from service.runtime import Runtime
from service.settings import Settings, StoreSettings


def event(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields}, separators=(",", ":"))


async def opened(path: Path) -> Runtime:
    settings = Settings(store=StoreSettings(path=str(path / "store.db")))
    return await Runtime.open(settings, Handlers(), SystemClock())


async def test_a_run_is_followed_and_the_whole_thread_is_known_after_a_restart(
    tmp_path: Path,
) -> None:
    runtime = await opened(tmp_path)
    said = {"id": "u1", "role": "user", "content": "hi"}
    writer = await runtime.threads.start("t", "r", writes="relay", messages=[said])
    await writer.append(event("TEXT_MESSAGE_START", messageId="m"))
    words = [f"word{number} " for number in range(2000)]
    for word in words:
        await writer.put(event("TEXT_MESSAGE_CONTENT", messageId="m", delta=word))
    await writer.append(event("TEXT_MESSAGE_END", messageId="m"))
    last = await writer.append(event("RUN_FINISHED", threadId="t", runId="r"))
    assert last == 2004
    # The history keeps the last 1,000 events.
    follower = runtime.threads.follow(writer.thread, Position(1004, ""))
    offsets: list[int] = []
    while len(offsets) < 1000:
        offsets += [each.offset for each in await follower.next()]
    assert offsets == list(range(1005, 2005))
    follower.close()
    snapshot = await writer.thread.snapshot()
    assert len(snapshot.events) == 5 and snapshot.complete
    assert json.loads(snapshot.events[2])["delta"] == "".join(words)
    await asyncio.wait_for(writer.ended.wait(), 10)
    await runtime.aclose()

    runtime = await opened(tmp_path)
    thread = await runtime.threads.open("t")
    assert await thread.snapshot() == snapshot
    messages = json.loads((await thread.prelude()).events[1])["messages"]
    assert messages == [
        said,
        {"id": "m", "role": "assistant", "content": "".join(words)},
    ]
    await runtime.aclose()

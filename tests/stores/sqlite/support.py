"""Processes that use a SQLite store, and what is stored in its file."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.clock import VirtualClock

ROOT = Path(__file__).resolve().parents[3]


async def publisher(directory: Path) -> asyncio.subprocess.Process:
    """Start a process that appends to the store in *directory* until it is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.stores.sqlite.publisher",
        str(directory / "store.db"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"started\n"
    return process


async def until(check: Callable[[], object]) -> None:
    """Wait for what a thread of the store does."""
    async with asyncio.timeout(60.0):
        while not check():
            await asyncio.sleep(0.001)  # between two looks


async def advance_to_next(clock: VirtualClock, within: float = 2.0) -> float:
    """Wait for a timer due within *within* seconds; advance to it, return how far."""
    await until(lambda: clock.pending and clock.pending[0] <= clock.now() + within)
    before = clock.now()
    clock.advance(clock.pending[0] - before)
    return clock.now() - before


def stored(connection: sqlite3.Connection, channel: str) -> list[int]:
    """Return the offsets that a channel's publications have in the file."""
    rows = connection.execute(
        "SELECT offset FROM publications JOIN channels ON channel_id = channels.id"
        " WHERE name = ? ORDER BY offset",
        (channel,),
    )
    return [offset for (offset,) in rows]

"""The foundation of a process has no timers of its own."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

from service.core.hooks import Handlers
from service.foundation import Foundation
from service.settings import load
from tests.clock import VirtualClock


async def test_it_runs_nothing_that_a_resident_process_runs(tmp_path: Path) -> None:
    clock = VirtualClock()
    path = str(tmp_path / "steadwire.db")
    settings = load({"STEADWIRE_STORE_PATH": path}, {})
    async with AsyncExitStack() as stack:
        base = Foundation(settings, Handlers(), clock, stack)
        await base.start(lambda batch: None)
        await base.revocations.refresh()
        store_alone = clock.pending
        clock.advance(1.0)
        await base.revocations.refresh()  # not again within two seconds
        assert clock.pending == store_alone
    assert clock.pending == []

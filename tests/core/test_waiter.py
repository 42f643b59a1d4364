from __future__ import annotations

import asyncio

import pytest

from service.core.errors import StoreUnavailable
from service.core.waiter import Waiter


async def test_an_outcome_is_handed_to_whoever_waits() -> None:
    waiter: Waiter[str] = Waiter()
    waiting = asyncio.ensure_future(waiter.future)
    await asyncio.sleep(0)
    assert not waiting.done()
    waiter.done("stored")
    assert await waiting == "stored"


async def test_a_fault_of_the_store_is_raised() -> None:
    waiter: Waiter[str] = Waiter()
    waiter.done(StoreUnavailable("scripted"))
    with pytest.raises(StoreUnavailable, match="scripted"):
        await waiter.future


async def test_an_outcome_for_nobody_is_dropped() -> None:
    waiter: Waiter[str] = Waiter()
    waiter.future.cancel()
    waiter.done("stored")
    waiter.done(StoreUnavailable("scripted"))
    assert waiter.future.cancelled()

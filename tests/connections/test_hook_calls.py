"""Hook calls: a hook that hangs is given up, and its work with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from service.connections.hook_calls import Outcome, ask
from service.connections.hook_health import HookHealth
from service.core.errors import INTERNAL, ReplyError
from service.core.hooks import Handlers, RpcEvent, RpcResult
from service.core.model import ClientId, UserId
from service.metrics import Metrics
from service.payload.encoder import PayloadEncoder
from tests.clock import VirtualClock


@pytest.mark.requirement("B108")
async def test_a_hook_that_hangs_is_refused_in_time_and_cancelled() -> None:
    ended = asyncio.Event()

    async def hang(event: RpcEvent) -> RpcResult:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("it waits for ever")

    def spawn(work: Awaitable[None]) -> object:
        return asyncio.ensure_future(work)

    clock = VirtualClock()
    metrics = Metrics()
    outcomes: list[Outcome] = []
    event = RpcEvent(ClientId("c"), UserId(""), "m")
    ask(
        Handlers(rpc=hang),
        event,
        outcomes.append,
        dump=PayloadEncoder(clock).dump,
        clock=clock,
        timeout=4.5,
        spawn=spawn,
        health=HookHealth(clock, metrics),
    )
    await asyncio.sleep(0)
    clock.advance(4.4)
    assert outcomes == []
    clock.advance(0.2)
    [outcome] = outcomes
    assert isinstance(outcome, ReplyError)
    assert outcome.error is INTERNAL
    await asyncio.wait_for(ended.wait(), 10)
    await asyncio.sleep(0)
    assert len(outcomes) == 1
    assert metrics.hook_failures.values["rpc"] == 1


async def test_a_late_hook_is_cancelled_whatever_becomes_of_its_answer() -> None:
    ended = asyncio.Event()

    async def hang(event: RpcEvent) -> RpcResult:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError("it waits for ever")

    def fail(outcome: Outcome) -> None:
        raise ZeroDivisionError("a bug")

    def spawn(work: Awaitable[None]) -> object:
        return asyncio.ensure_future(work)

    clock = VirtualClock()
    ask(
        Handlers(rpc=hang),
        RpcEvent(ClientId("c"), UserId(""), "m"),
        fail,
        dump=PayloadEncoder(clock).dump,
        clock=clock,
        timeout=4.5,
        spawn=spawn,
        health=HookHealth(clock, Metrics()),
    )
    await asyncio.sleep(0)
    with pytest.raises(ZeroDivisionError):
        clock.advance(4.6)
    await asyncio.wait_for(ended.wait(), 10)

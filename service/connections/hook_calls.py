"""Ask a hook and be told of exactly one answer, in time, whatever the hook does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from service.core.errors import INTERNAL, CloseError, ReplyError, describe
from service.core.hooks import (
    Answer,
    ConnectEvent,
    Event,
    Handlers,
    PublishEvent,
    RefreshEvent,
    RpcEvent,
    SubRefreshEvent,
    SubscribeEvent,
)
from service.core.ports import Clock
from service.metrics import Metrics

__all__ = ["Outcome", "ask", "count_hook", "log_hook"]

Outcome = Answer | ReplyError | CloseError

_NAMES: dict[type, str] = {
    ConnectEvent: "connect",
    RefreshEvent: "refresh",
    SubscribeEvent: "subscribe",
    SubRefreshEvent: "sub_refresh",
    PublishEvent: "publish",
    RpcEvent: "rpc",
}

log = structlog.get_logger("steadwire")


def ask(
    handlers: Handlers,
    event: Event,
    answered: Callable[[Outcome], None],
    *,
    clock: Clock,
    timeout: float,
    spawn: Callable[[Awaitable[None]], object],
    metrics: Metrics,
) -> None:
    """Ask the hook that *event* is for; *answered* is called once.

    A hook that raises, is cancelled, or has not answered after *timeout* seconds gives
    a temporary error: nobody is let in by it, and nobody is sent away for good. An
    answer that comes later is dropped.
    """
    waiting = True

    def take(outcome: Outcome) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            timer.cancel()
            if isinstance(outcome, ReplyError) and outcome.error is INTERNAL:
                count_hook(event, metrics)
            answered(outcome)

    async def run() -> None:
        try:
            outcome: Outcome = await handlers.answer(event)
        except (ReplyError, CloseError) as refusal:
            outcome = refusal
        except (Exception, asyncio.CancelledError) as error:
            # Cancelled is what a hook is whose own work was cancelled.
            if waiting:  # else it is what `late` has cancelled
                log_hook(event, error)
            outcome = ReplyError(INTERNAL)
        take(outcome)

    def late() -> None:
        log_hook(event, TimeoutError())
        take(ReplyError(INTERNAL))
        if isinstance(work, asyncio.Task):
            work.cancel()  # else what hangs would pile up

    timer = clock.call_at(clock.now() + timeout, late)
    work = spawn(run())


def count_hook(event: Event, metrics: Metrics) -> None:
    """Count that nobody knows what a hook would have said."""
    metrics.hook_failures.add(_NAMES[type(event)])


def log_hook(event: Event, error: BaseException) -> None:
    """Log that a hook failed, without what it was asked or said."""
    log.error("a hook failed", hook=type(event).__name__, **describe(error))

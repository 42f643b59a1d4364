"""Hook calls: each is answered exactly once and in time, whatever the hook does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from service.core.errors import INTERNAL, CloseError, ReplyError, describe
from service.core.hooks import (
    WRONG_ANSWER,
    Answer,
    ConnectEvent,
    Event,
    Handlers,
    PublishEvent,
    RefreshEvent,
    RpcEvent,
    SubRefreshEvent,
    SubscribeEvent,
    WrongAnswer,
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
    a temporary error: it lets no client in, and sends none away for good. An
    answer that comes later is dropped.
    """
    waiting = True

    def take(outcome: Outcome) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            timer.cancel()
            if isinstance(outcome, ReplyError) and (
                outcome.error is INTERNAL or outcome.error is WRONG_ANSWER
            ):
                count_hook(event, metrics)
            answered(outcome)

    async def run() -> None:
        try:
            outcome: Outcome = await handlers.answer(event)
        except (ReplyError, CloseError) as refusal:
            outcome = refusal
        except (Exception, asyncio.CancelledError) as error:
            # A hook whose own work was cancelled raises `CancelledError`.
            if waiting:  # else `late` has cancelled it
                log_hook(event, error)
            outcome = ReplyError(INTERNAL)
        take(outcome)

    def late() -> None:
        log_hook(event, TimeoutError())
        if isinstance(work, asyncio.Task):
            work.cancel()  # else hooks that hang would pile up
        take(ReplyError(INTERNAL))

    timer = clock.call_at(clock.now() + timeout, late)
    work = spawn(run())


def count_hook(event: Event, metrics: Metrics) -> None:
    """Count a hook that gave no answer that can be used."""
    metrics.hook_failures.add(_NAMES[type(event)])


def log_hook(event: Event, error: BaseException) -> None:
    """Log that a hook failed, without the event and the answer."""
    about = describe(error)
    if isinstance(error, WrongAnswer):
        about["reason"] = str(error)
    log.error("a hook failed", hook=type(event).__name__, **about)

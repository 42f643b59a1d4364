"""Hook calls: each is answered exactly once and in time, whatever the hook does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn

import structlog

from service.connections.hook_health import HookHealth
from service.connections.pending_connection import PendingConnection
from service.core.errors import (
    INTERNAL,
    TOO_MANY_REQUESTS,
    CloseError,
    ReplyError,
    describe,
)
from service.core.hooks import (
    WRONG_ANSWER,
    Answer,
    ConnectEvent,
    ConnectResult,
    Event,
    Handlers,
    PublishEvent,
    PublishResult,
    Raw,
    RefreshEvent,
    RefreshResult,
    RpcEvent,
    RpcResult,
    ServerSubscription,
    SubRefreshEvent,
    SubRefreshResult,
    SubscribeEvent,
    SubscribeResult,
    WrongAnswer,
)
from service.core.model import RawJson
from service.core.ports import Clock

__all__ = ["BLOCKED", "Outcome", "ask", "complete", "encoded", "note_answer"]

Outcome = Answer | ReplyError | CloseError
Dump = Callable[[object], Awaitable[RawJson]]


async def _refuse(event: ConnectEvent) -> NoReturn:
    raise ReplyError(TOO_MANY_REQUESTS, reason="it was refused a moment ago")


BLOCKED = Handlers(connect=_refuse, connect_token=_refuse, connect_ticket=_refuse)
"""The hooks of a client whose credentials were refused a moment ago."""


def complete(
    event: Event, pending: PendingConnection, handlers: Handlers
) -> tuple[Handlers, Event]:
    """Add to an event what its client's handshake said; return also who is asked.

    That is `BLOCKED` for credentials that are not to be looked at.
    """
    if isinstance(event, ConnectEvent):
        event = replace(event, origin=pending.origin, http_headers=pending.headers)
        if pending.blocked(event):
            handlers = BLOCKED
    elif isinstance(event, RefreshEvent):
        event = replace(event, origin=pending.origin)
    return handlers, event


_NAMES: dict[type, str] = {
    ConnectEvent: "connect",
    RefreshEvent: "refresh",
    SubscribeEvent: "subscribe",
    SubRefreshEvent: "sub_refresh",
    PublishEvent: "publish",
    RpcEvent: "rpc",
}

_PAYLOADS: dict[type, tuple[str, ...]] = {
    ConnectResult: ("info", "data", "meta"),
    ServerSubscription: ("info", "data"),
    RefreshResult: ("info",),
    SubscribeResult: ("info", "data"),
    SubRefreshResult: ("info",),
    PublishResult: ("data",),
    RpcResult: ("data",),
}

log = structlog.get_logger("steadwire")


def ask(
    handlers: Handlers,
    event: Event,
    answered: Callable[[Outcome], None],
    *,
    dump: Dump,
    clock: Clock,
    timeout: float,
    spawn: Callable[[Awaitable[None]], object],
    health: HookHealth,
) -> None:
    """Ask the hook that *event* is for; *answered* is called once.

    A hook that raises, is cancelled, or has not answered after *timeout* seconds gives
    a temporary error: it lets no client in, and sends none away for good. An
    answer that comes later is dropped. The payloads of an answer are encoded here, in
    the same time.
    """
    waiting = True

    def take(outcome: Outcome) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            timer.cancel()
            if not _is_usable(outcome):
                health.failed(_NAMES[type(event)])
            answered(outcome)

    async def run() -> None:
        try:
            outcome: Outcome = await encoded(await handlers.answer(event), dump)
        except (ReplyError, CloseError) as refusal:
            outcome = refusal
        except (Exception, asyncio.CancelledError) as error:
            # A hook whose own work was cancelled raises `CancelledError`.
            if waiting:  # else `late` has cancelled it
                _log_failure(event, error)
            outcome = ReplyError(INTERNAL)
        take(outcome)

    def late() -> None:
        _log_failure(event, TimeoutError())
        if isinstance(work, asyncio.Task):
            work.cancel()  # else hooks that hang would pile up
        take(ReplyError(INTERNAL))

    timer = clock.call_at(clock.now() + timeout, late)
    work = spawn(run())


async def encoded(answer: Answer, dump: Dump) -> Answer:
    """Return *answer* with its payloads as JSON text, or itself if they all are.

    What is not an answer is returned as it is, for the session to refuse.

    Raises:
        ReplyError: 111, temporary: too many payloads wait to be encoded.
    """
    changes = await _encoded_fields(answer, dump)
    if isinstance(answer, ConnectResult) and isinstance(answer.subs, Mapping):
        subs, changed = {}, False
        for name, one in answer.subs.items():
            fields = await _encoded_fields(one, dump)
            subs[name] = replace(one, **fields) if fields else one
            changed = changed or bool(fields)
        if changed:
            changes["subs"] = subs
    return replace(answer, **changes) if changes else answer


async def _encoded_fields(
    result: Answer | ServerSubscription, dump: Dump
) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for kind, names in _PAYLOADS.items():
        if isinstance(result, kind):
            for name in names:
                value = getattr(result, name)
                if value is not None and type(value) is not Raw:
                    changes[name] = Raw(await dump(value))
    return changes


def note_answer(
    event: Event, outcome: Outcome, wrong: BaseException | None, health: HookHealth
) -> None:
    """Note what a session made of an outcome that `ask` has given it.

    Args:
        event: What the hook was asked.
        outcome: What it answered, or the refusal in its place.
        wrong: Why the session could not use the answer; None if it could.
        health: Counts it.
    """
    if wrong is not None:
        _log_failure(event, wrong)
        health.failed(_NAMES[type(event)])
    elif _is_usable(outcome):
        health.answered(_NAMES[type(event)])


def _is_usable(outcome: Outcome) -> bool:
    return not isinstance(outcome, ReplyError) or (
        outcome.error is not INTERNAL and outcome.error is not WRONG_ANSWER
    )


def _log_failure(event: Event, error: BaseException) -> None:
    """Log that a hook failed, without the event and the answer."""
    about = describe(error)
    if isinstance(error, WrongAnswer):
        about["reason"] = str(error)
    log.error("a hook failed", hook=type(event).__name__, **about)

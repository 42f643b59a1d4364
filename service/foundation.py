"""Foundation of a process: what every way to serve clients needs, with no timers.

`runtime.Runtime` builds a resident process on it, which holds the sockets of clients
and runs timers; `gateway` an environment that lives for as long as it is invoked.
"""

from __future__ import annotations

import asyncio
import platform
import random
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import structlog

from service.auth.authenticator import Authenticator
from service.auth.permissions import Permissions
from service.auth.revocations import Revocation, Revocations
from service.auth.tickets import Tickets
from service.auth.verifier import RemoteKeys, Verifier
from service.broker import add_broker_metrics, make_broker
from service.core.errors import StoreError, describe
from service.core.health import Checks, Fault
from service.core.hooks import Handlers
from service.core.people import People
from service.core.ports import Clock, CommitListener, Hearer
from service.core.refusal_log import RefusalLog
from service.metrics import Metrics
from service.payload.encoder import PayloadEncoder
from service.settings import BrokerSettings, Settings, changes
from service.stores.factory import AnyStore, add_store_metrics, make_store

__all__ = ["Foundation", "NodeInfo"]

log = structlog.get_logger("steadwire")


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """This process, as the server API describes it.

    Attributes:
        uid: New with each start.
        name: The name of the machine.
        version: The version of this package.
        started: Time of the start, on the runtime's clock.
    """

    uid: str
    name: str
    version: str
    started: float


class Foundation:
    """The parts that every way to serve clients needs.

    The stack that it is made on closes them, in reverse order. A broker is used by
    *resident* processes alone: a frozen one keeps no connection.

    Attributes:
        settings: The settings it was made with.
        clock: The clock of everything.
        node: This process.
        metrics: Counters, gauges and histograms.
        checks: The checks of ``/health/ready``.
        broker: Carries hints between processes; None without one.
        store: The store of history and state.
        encoder: Makes JSON text of the payloads of the application.
        permissions: The rules of channels.
        handlers: Every hook: the application's, and those of tokens and tickets.
        tickets: Tickets, with each of which a client connects once.
        revocations: Revoked tokens.
        people: Closes the connections of what is revoked; set when there are any.
        rng: Spreads what many would do at once.
        last: Closes what the store and background tasks use until their end.
        spawn: Runs a coroutine in the background, and logs what it raises.
    """

    def __init__(
        self,
        settings: Settings,
        handlers: Handlers,
        clock: Clock,
        stack: AsyncExitStack,
        stopping: asyncio.Event | None = None,
        *,
        resident: bool = False,
    ) -> None:
        self.last = AsyncExitStack()
        stack.push_async_callback(self.last.aclose)
        tasks = _Tasks()
        stack.push_async_callback(tasks.close)
        self.spawn = tasks.spawn
        self.settings = settings
        self.clock = clock
        self.encoder = PayloadEncoder(clock)
        stack.callback(self.encoder.close)
        self.metrics, self.checks, self.rng = Metrics(), Checks(), random.Random()
        self.node = NodeInfo(uuid.uuid4().hex, platform.node(), _version(), clock.now())
        remote: Mapping[str, RemoteKeys] = {}
        sections = settings.token, settings.subscription_keys
        if any(section.jwks_public_endpoint for section in sections):
            from service.auth.jwks import open_endpoints

            remote = endpoints = open_endpoints(settings, clock)
            for endpoint in endpoints.values():
                stack.push_async_callback(endpoint.close)
            self.checks.add("keys", partial(_first_fault, list(endpoints.values())))
        verifier = Verifier(settings, clock.wall, remote)
        refusals = RefusalLog()
        stack.callback(refusals.close)
        self.permissions = Permissions(
            settings.channels,
            insecure=settings.insecure,
            personal=settings.client.user_personal_channel,
            on_refusal=partial(_log_refusal, refusals, clock),
            threads=settings.runs.namespace,
        )
        own = settings.broker if resident else BrokerSettings()
        self.broker = make_broker(own, self.node.uid, clock, self.rng)
        add_broker_metrics(self.metrics, self.broker)
        self.store: AnyStore = make_store(settings, clock, stopping, self.broker)
        stack.push_async_callback(self.store.close)
        add_store_metrics(self.metrics, self.store)
        self.tickets = Tickets(self.store.state, clock, random.SystemRandom())
        self.revocations = Revocations(
            self.store.state,
            clock,
            spawn=tasks.spawn,
            on_revoked=self._revoked,
            on_failure=_log_revocations_unknown,
        )
        authenticator = Authenticator(verifier, self.revocations, self.tickets)
        self.handlers = authenticator.handlers(handlers, settings)
        self.people: People | None = None

    async def start(
        self, listener: CommitListener, hearer: Hearer | None = None
    ) -> None:
        """Start the store; *listener* is told of its commits, *hearer* of others'.

        Raises:
            StartupError: The store cannot be opened.
        """
        await self.store.start(listener, hearer)
        for words in changes(self.settings):  # R48
            log.info(words)
        for name, weakness in self.settings.warnings.items():
            log.warning(
                "a setting is weak",
                setting=name,
                reason=weakness,
                remedy="`steadwire keys` makes another",
            )

    def broker_fault(self) -> Fault | None:
        """Return why hints are not carried, if a broker is set: polls take over."""
        reason = None if self.broker is None else self.broker.fault()
        return None if reason is None else Fault(reason, failing=False)

    def _revoked(self, revocation: Revocation) -> None:
        if self.people is not None:
            token_id, user, before = revocation
            self.spawn(self.people.revoke(user, token_id, before))


class _Checked(Protocol):
    def fault(self) -> Fault | None: ...


def _first_fault(parts: Sequence[_Checked]) -> Fault | None:
    """Return the fault of the first of several parts that has one."""
    return next(filter(None, (part.fault() for part in parts)), None)


def _log_refusal(
    refusals: RefusalLog, clock: Clock, rule: str, channel: str, remedy: str
) -> None:
    """Log at a bounded rate what a client may not do, and what would allow it."""
    where = {"channel": channel} if channel else {}
    refusals.add(rule, "", clock.now(), **where, remedy=remedy)


def _log_revocations_unknown(error: StoreError) -> None:
    # The text comes from the store, and names no token.
    log.error("what is revoked cannot be read", reason=str(error))


class _Tasks:
    """Background tasks; an exception of one is logged."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(_logged(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def close(self) -> None:
        """Cancel the tasks that still run."""
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _logged(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception as error:
        log.error("a background task failed", **describe(error))


def _version() -> str:
    try:
        return version("steadwire")
    except PackageNotFoundError:
        return "0"  # run from a source tree that was never installed

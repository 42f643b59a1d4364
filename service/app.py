"""Composition: settings in, an ASGI application out. Nothing else constructs.

`create_app` gives an application for ``steadwire serve`` or for mounting in another
ASGI application; ``app`` is for stock servers (``hypercorn service.app:app``) and
reads its settings from the environment when the server starts it.

The service starts with the lifespan protocol, or with the first request where nobody
speaks it. Start and drain are each done once, whoever asks.
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
import secrets
import uuid
from collections.abc import Awaitable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import structlog

from service import logs
from service.auth import Verifier
from service.auth.jwks import open_endpoints
from service.auth.permissions import Permissions
from service.connections.connection import ConnectionContext
from service.connections.credentials import Credentials
from service.connections.keeping import Keeping, keep
from service.connections.loop_monitor import LoopMonitor
from service.connections.outbox import Flusher
from service.connections.registry import Registry
from service.connections.services import Services
from service.core.clock import SystemClock
from service.core.errors import SHUTDOWN, describe
from service.core.health import Checks, Fault
from service.core.hooks import Handlers
from service.core.model import ClientId, Position
from service.core.ports import Clock, Store, Timer
from service.core.refusals import Refusals
from service.http.api.context import ApiContext, ProcessInfo
from service.http.api.key import open_keys
from service.http.api.publish import append, draft_of
from service.http.gauges import add_gauges
from service.http.health import Ready
from service.http.hooks_proxy import Proxy
from service.http.mount import Deferred, below, unavailable
from service.http.routing import Routing
from service.hub.hub import Hub
from service.hub.publish_metrics import PublishMetrics
from service.metrics import Metrics
from service.payload import dump
from service.server import install
from service.settings import Settings, changes, load
from service.stores.factory import make_store, make_upkeep
from service.stores.gauges import add_gauges as add_store_gauges
from service.transports.handshake_gate import HandshakeGate

__all__ = ["Application", "app", "create_app"]

log = structlog.get_logger("steadwire")

T = TypeVar("T")

CLOSING = 2.0
"""Seconds a drain waits for clients to take their close frames; then it goes on."""


class Application:
    """The ASGI application and the life of the service behind it.

    Attributes:
        settings: What it was made of.
        api_key: The API's key: the one set, or the one made up for development.
        startup_error: Why it could not start, once it has been tried.
        metrics: What happened, counted.
        checks: What is wrong.
        refusals: Connections that the server cut off before they had sent a request.
    """

    def __init__(
        self, settings: Settings, handlers: Handlers, *, clock: Clock | None = None
    ) -> None:
        self.settings = settings
        self._proxy = Proxy(settings.proxy) if settings.proxy.endpoints else None
        own = self._proxy.handlers(handlers) if self._proxy else handlers
        settings.check_door(hook=own.connect is not None)
        self.startup_error: BaseException | None = None
        self.metrics = Metrics()
        self.checks = Checks()
        self.refusals = Refusals()
        self.checks.add("store", self._fault)
        self._clock = clock or SystemClock()
        self.api_key: str = settings.api.key
        if settings.environment == "development" and not settings.api.has_keys:
            self.api_key = secrets.token_urlsafe(16)
        self._keys = open_keys(settings, self.api_key, self._clock)
        self.checks.add("api_keys", self._keys.fault)
        self._endpoints = open_endpoints(settings, self._clock)
        self._verifier = Verifier(settings, self._clock.wall, self._endpoints)
        self._handlers = own
        self._permissions = Permissions(
            settings.channels,
            insecure=settings.insecure,
            personal=settings.client.user_personal_channel,
        )
        self._store: Store | None = None
        self._keeping: Keeping | None = None
        self._services: Services | None = None
        self._starting: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: Timer | None = None
        self._watch: LoopMonitor | None = None
        self._node: ProcessInfo | None = None
        self._credentials: Credentials | None = None
        self._api = ApiContext(
            settings.api, self._running, self._opened, self._this_node, self._issued
        )
        self._door = HandshakeGate(
            settings, self._clock, draining=lambda: self._draining is not None
        )
        self._routing = Routing(
            settings,
            self._running,
            self._this_node,
            self._api,
            self._keys,
            Ready(self.checks),
        )

    async def start(self) -> None:
        """Open the store and begin to serve; done once.

        Raises:
            StartupError: It cannot start; also kept in `startup_error`.
        """
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self._starting)

    async def drain(self) -> None:
        """Close every client with 3001, then flush and close the store; done once.

        Takes no longer than `CLOSING` plus what the store needs to commit.
        """
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        await asyncio.shield(self._draining)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if self._services is None:
            first = self._starting is None
            try:
                await self.start()
            except Exception as error:
                if first:
                    log.error("cannot start", reason=str(error), **describe(error))
                await unavailable(scope, receive, send)
                return
        routes = self._routing.of(scope)
        if scope["type"] == "websocket":
            await self._door.serve(routes, below(scope), receive, send)
        else:
            await routes(below(scope), receive, send)

    # In-process use.

    async def publish(
        self,
        channel: str,
        data: object,
        *,
        tags: Mapping[str, str] | None = None,
        skip_history: bool = False,
        idempotency_key: str = "",
        version: int = 0,
        version_epoch: str = "",
    ) -> Position:
        """Publish any Python object that can be JSON, and wait for the commit.

        Starts the service if nothing has. The options are the server API's.

        Returns:
            The publication's position; offset 0 without history.

        Raises:
            ReplyError: 102 or 107, from the channel; 107 for a payload too large.
            StoreError: It was not published, or nobody knows: repeat it with the
                same idempotency key.
            StartupError: The service cannot start.
        """
        await self.start()
        draft = draft_of(
            self._api,
            dump(data),
            tags,
            idempotency_key=idempotency_key,
            version=version,
            version_epoch=version_epoch,
        )
        appended = await append(self._api, channel, draft, skip_history=skip_history)
        return appended.position

    # Life.

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        try:
            await self.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.drain()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        settings = self.settings
        store = make_store(settings, self._clock)
        loop = asyncio.get_running_loop()
        flusher = Flusher(loop.call_soon)
        meter = PublishMetrics(self.metrics, self._clock, flusher)
        hub = Hub(store, settings.client, self._spawn, meter)
        connections = Registry()
        upkeep = make_upkeep(store, settings, self._clock, connections.active)
        try:
            await store.start(hub.committed)
            if upkeep is not None:
                await upkeep.start()
        except Exception as error:
            self.startup_error = error
            await store.close()
            raise
        self._store = store
        add_store_gauges(self.metrics, store)
        log.info("settings", **changes(settings))  # R48
        self._node = ProcessInfo(uuid.uuid4().hex, platform.node(), self._clock.now())
        self._check_later()
        rng = random.Random()
        self._keeping = kept = keep(
            settings, connections, hub, self._clock, rng, self._spawn, upkeep
        )
        kept.start()
        self._credentials = Credentials(
            store.state, self._verifier, self._clock, self._spawn, connections
        )
        await self._credentials.start()
        self.checks.add("revocations", self._credentials.fault)
        context = ConnectionContext(
            settings=settings,
            hub=hub,
            permissions=self._permissions,
            handlers=self._credentials.handlers(self._handlers, settings),
            clock=self._clock,
            flusher=flusher,
            rng=rng,
            new_client=_new_client,
            spawn=self._spawn,
            version=_version(),
            metrics=self.metrics,
            registry=connections,
            limits=kept.admission,
            heartbeat=kept.heartbeat,
            grace_period=kept.parking,
        )
        self._services = Services(
            hub=hub,
            permissions=self._permissions,
            clock=self._clock,
            version=context.version,
            connections=connections,
            admission=kept.admission,
            heartbeat=kept.heartbeat,
            parking=kept.parking,
            sweep=kept.sweep,
            metrics=self.metrics,
            checks=self.checks,
            context=context,
        )
        self.checks.add("sweep", kept.sweep.fault)
        self._watch = LoopMonitor(connections, self.metrics, self._clock, rng)
        self._watch.start()
        add_gauges(self._services, self._watch, self._door, self._keys, self.refusals)

    async def _drain(self) -> None:
        services, store = self._services, self._store
        if services is not None and store is not None:
            await self._end(services, store)
        for endpoint in self._endpoints.values():
            await endpoint.close()
        if self._proxy is not None:
            await self._proxy.close()

    async def _end(self, services: Services, store: Store) -> None:
        if self._watch is not None:
            self._watch.stop()
        if self._timer is not None:
            self._timer.cancel()
        if self._credentials is not None:
            self._credentials.stop()
        self._door.close()
        deadline = self._clock.now() + CLOSING
        for connection in services.connections:
            connection.disconnect(SHUTDOWN)
        while len(services.connections) and self._clock.now() < deadline:
            await asyncio.sleep(0.01)
        if self._keeping is not None:
            await self._keeping.close()
        await store.close()

    def _check_later(self) -> None:
        when = self._clock.now() + self.settings.client.position_check
        self._timer = self._clock.call_at(when, self._check)

    def _check(self) -> None:
        self._running().hub.check_positions()
        self._check_later()

    def _spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(_guard(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Nothing is routed before the start.

    def _running(self) -> Services:
        return _there(self._services)

    def _opened(self) -> Store:
        return _there(self._store)

    def _issued(self) -> Credentials:
        return _there(self._credentials)

    def _this_node(self) -> ProcessInfo:
        return _there(self._node)

    def _fault(self) -> Fault | None:
        if self._draining is not None:
            return Fault("shutting down", failing=True)
        reason = self._store.fault() if self._store is not None else "starting"
        # A fault of what all share is no reason to go elsewhere.
        own = self._store is None or self.settings.store.backend == "sqlite"
        return None if reason is None else Fault(reason, failing=own)


def create_app(settings: Settings, handlers: Handlers | None = None) -> Application:
    """Return an application for *settings*; it starts with its first scope.

    Args:
        settings: From `settings.load`.
        handlers: Hooks in Python; a hook that is None is asked over HTTP if the
            settings name an endpoint for it.

    Raises:
        SettingsError: Nobody could connect, a key is none, or the file of API keys
            is wrong.
    """
    return Application(settings, handlers or Handlers())


def _from_environment() -> Application:
    settings = load(os.environ, {})
    logs.configure(settings.log)
    application = create_app(settings)
    install(settings.server, application.refusals)
    made_up = application.api_key
    if made_up and made_up != settings.api.key:
        # `steadwire serve` prints it; a stock server has only the log.
        log.warning("made up an API key", api_key=made_up)
    return application


app = Deferred(_from_environment)


def _there(made: T | None) -> T:
    if made is None:
        raise AssertionError("no request is routed before the start")
    return made


async def _guard(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception as error:
        log.error("a background task failed", **describe(error))


def _new_client() -> ClientId:
    return ClientId(str(uuid.uuid4()))


def _version() -> str:
    try:
        return version("steadwire")
    except PackageNotFoundError:
        return "0"  # run from a source tree that was never installed

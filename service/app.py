"""ASGI shell: the lifespan, mounting, 503 until the runtime is ready.

`create_app` returns an application for ``steadwire serve`` or for mounting in another
ASGI application; ``app`` is for stock servers (``hypercorn service.app:app``) and
reads its settings from the environment when the server starts it.

The service starts with the lifespan protocol, or with the first request where the
server does not speak it. It starts once and drains once, however often it is asked.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import structlog

from service import logs
from service.auth.keys import read_settings
from service.core.clock import SystemClock
from service.core.errors import StartupError, describe
from service.core.hooks import Handlers
from service.core.model import Position
from service.core.ports import Clock
from service.core.refusals import Refusals
from service.http.api.context import ApiContext
from service.http.api.keys import open_keys
from service.http.api.publish import append, draft_of
from service.http.gauges import add_gauges
from service.http.mount import Deferred, below, unavailable
from service.http.routing import Routing
from service.payload import dump
from service.runtime import Runtime
from service.server import install
from service.settings import Settings, load

__all__ = ["Application", "app", "create_app"]

log = structlog.get_logger("steadwire")


class Application:
    """The ASGI application and the life of the service behind it.

    Attributes:
        settings: What it was made of.
        api_key: The API's key: the one set, or the one made up for development.
        startup_error: Why it could not start, once that was tried.
        refusals: Connections that the server cut off before they had sent a request.
    """

    def __init__(
        self, settings: Settings, handlers: Handlers, *, clock: Clock | None = None
    ) -> None:
        hook = handlers.connect is not None or bool(settings.proxy.connect)
        settings.check_admission(hook=hook)
        read_settings(settings.token, "token")
        read_settings(settings.subscription_token, "subscription_token")
        self.settings = settings
        self.startup_error: BaseException | None = None
        self.refusals = Refusals()
        self.api_key: str = settings.api.key
        if settings.environment == "development" and not settings.api.has_keys:
            self.api_key = secrets.token_urlsafe(16)
        self._handlers = handlers
        self._clock = clock or SystemClock()
        self._keys = open_keys(settings, self.api_key, self._clock)
        self._stack = AsyncExitStack()  # closes what was started
        self._starting: asyncio.Task[tuple[Runtime, Routing]] | None = None
        self._draining: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the runtime and begin to serve; done once.

        Raises:
            StartupError: It cannot start; also kept in `startup_error`.
            SettingsError: The same, because of a setting.
        """
        await self._started()

    async def drain(self) -> None:
        """Close every client with 3001, then flush and close the store; done once.

        A start that is under way is waited for.
        """
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        await asyncio.shield(self._draining)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        first = self._starting is None
        try:
            runtime, routing = await self._started()
        except Exception as error:
            if first:
                log.error("cannot start", reason=str(error), **describe(error))
            await unavailable(scope, receive, send)
            return
        routes = routing.of(scope)
        if scope["type"] == "websocket":
            await runtime.gate.serve(routes, below(scope), receive, send)
        else:
            await routes(below(scope), receive, send)

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

        Starts the service if it has not been started. The options are the server API's.

        Returns:
            The publication's position; offset 0 without history.

        Raises:
            ReplyError: 102 or 107, from the channel; 107 for a payload too large.
            StoreError: It was not published, or the outcome is unknown: repeat it with
                the same idempotency key.
            StartupError: The service cannot start.
        """
        runtime, _ = await self._started()
        context = ApiContext(runtime)
        draft = draft_of(
            context,
            dump(data),
            tags,
            idempotency_key=idempotency_key,
            version=version,
            version_epoch=version_epoch,
        )
        appended = await append(context, channel, draft, skip_history=skip_history)
        return appended.position

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

    async def _started(self) -> tuple[Runtime, Routing]:
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> tuple[Runtime, Routing]:
        try:
            if self._draining is not None:
                raise StartupError("it was drained before it started")
            async with AsyncExitStack() as stack:
                settings, handlers = self.settings, self._handlers
                if settings.proxy.endpoints:
                    from service.http.hooks_proxy import HooksProxy

                    proxy = HooksProxy(settings.proxy)
                    stack.push_async_callback(proxy.close)
                    handlers = proxy.handlers(handlers)
                runtime = await Runtime.open(settings, handlers, self._clock)
                stack.push_async_callback(runtime.aclose)
                runtime.checks.add("api_keys", self._keys.fault)
                add_gauges(runtime, self._keys, self.refusals)
                routing = Routing(runtime, self._keys)
                self._stack = stack.pop_all()
        except Exception as error:
            self.startup_error = error
            raise
        return runtime, routing

    async def _drain(self) -> None:
        if self._starting is not None:
            await asyncio.wait([self._starting])
        await self._stack.aclose()


def create_app(settings: Settings, handlers: Handlers | None = None) -> Application:
    """Return an application for *settings*; it starts with its first scope.

    Args:
        settings: From `settings.load`.
        handlers: Hooks in Python; a hook that is None is asked over HTTP if the
            settings name an endpoint for it.

    Raises:
        SettingsError: Nobody could connect, a key cannot be read, or the file of API
            keys is wrong.
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

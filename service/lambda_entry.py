"""Lambda entry point: events of the gateway, handed-over deliveries, the schedule.

The handler of the function is ``service.lambda_entry.handler``, or with hooks in Python
what `make_handler` returns for them. It takes

* events of the proxy integration of a WebSocket API, for all three routes;
* requests of an HTTP API or of the function's URL (payload 2.0): the server API;
* asynchronous invocations of the function by itself, which deliver under a hold;
* events of a schedule (EventBridge), which run the sweeper.

Settings come from STEADWIRE_… variables and a steadwire.toml beside the code, as
everywhere. The service is opened in Lambda's init phase, when the module is imported.

An environment handles one event at a time and is frozen between two. So nothing of an
event goes on after its answer: deliveries are awaited, or handed over `DELIVERING`
seconds after the event began. And each event begins with what a freeze may have made
wrong: the clock, pooled connections, what is believed of channels and of revocations.

This module is imported in each cold start, and with it only what the settings need:
tests/test_lambda_entry.py has the list. The server API is imported with its first
request.
"""

from __future__ import annotations

import gc

# What a cold start makes is there to stay. To look through it for garbage, again and
# again while it grows, takes a tenth of the time; it is looked at no more afterwards.
gc.disable()

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import structlog

from service import logs
from service.connections.refused_credentials import RefusedCredentials
from service.core.clock import SystemClock
from service.core.errors import CodecError, SettingsError
from service.core.health import Fault
from service.core.hooks import Handlers
from service.core.rate_limits import rate_of
from service.core.refusal_log import RefusalLog
from service.foundation import Foundation
from service.gateway.events import Kind, from_event, hold_of
from service.gateway.handshake import Handshake, answer
from service.gateway_runtime import GatewayRuntime
from service.http.http_events import is_request, respond
from service.settings import load

__all__ = ["handler", "make_handler"]

DELIVERING = 20.0  # s; the gateway gives an integration up after 29

Handler = Callable[[Mapping[str, Any], object], dict[str, Any]]

log = structlog.get_logger("steadwire")


class _Function:
    """The service in one environment.

    Args:
        environ: Variables with the settings.
        handlers: Hooks in Python.

    Raises:
        SteadwireError: It cannot be opened; the text says why.
    """

    def __init__(self, environ: Mapping[str, str], handlers: Handlers) -> None:
        self._settings = settings = load(environ, {})
        if not settings.gateway.endpoint:
            raise SettingsError("the function needs gateway.endpoint")
        hook = handlers.connect is not None or bool(settings.proxy.connect)
        settings.check_admission(hook=hook)
        logs.configure(settings.log)
        self._handlers = handlers
        self._clock = clock = SystemClock()
        self._stack = AsyncExitStack()
        self._refusals = RefusalLog()
        rates = settings.effective_limits
        self._handshake = Handshake(
            settings.origins,
            rate_of(rates.connects_per_address, rates.burst),
            clock,
            self._refusals,
        )
        self._routes: Any = None
        self._loop = asyncio.new_event_loop()
        try:
            self._base, self._gateway = self._loop.run_until_complete(self._open())
        except BaseException:
            self._loop.run_until_complete(self._stack.aclose())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            raise

    async def _open(self) -> tuple[Foundation, GatewayRuntime]:
        settings, handlers, stack = self._settings, self._handlers, self._stack
        if settings.proxy.endpoints:
            from service.http.hooks_proxy import HooksProxy

            proxy = HooksProxy(settings.proxy, settings.tls)
            stack.push_async_callback(proxy.close)
            handlers = proxy.handlers(handlers)
        base = Foundation(settings, handlers, self._clock, stack)
        refused = RefusedCredentials(
            settings.effective_limits, self._clock, self._refusals
        )
        gateway = GatewayRuntime(base, refused)
        await gateway.start()
        await base.start(gateway.delivery.committed)
        base.people = gateway.people
        return base, gateway

    def __call__(self, event: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._loop.run_until_complete(self._handle(event))
        finally:
            logs.flush()

    async def _handle(self, event: Mapping[str, Any]) -> dict[str, Any]:
        gateway = self._gateway
        application, delivery = gateway.application, gateway.delivery
        gateway.thawed()
        delivery.until = self._clock.now() + DELIVERING
        request = is_request(event)
        # A caller of the server API does not wait until everybody has it.
        delivery.hands_over = request and bool(self._settings.gateway.function)
        try:
            if request:
                return await self._respond(event)
            hold = hold_of(event)
            if hold is not None:
                await application.deliver(hold)
            elif event.get("detail-type") == "Scheduled Event":
                await application.sweep()
            else:
                return await self._answer(event)
            return {"statusCode": 200}
        finally:
            await delivery.drain()

    async def _respond(self, event: Mapping[str, Any]) -> dict[str, Any]:
        try:
            if self._routes is None:
                self._routes = self._open_routes()
            return await respond(self._routes, event)
        except CodecError as error:
            log.error("an event of an unknown kind", reason=str(error))
            return {"statusCode": 400}

    def _open_routes(self) -> Any:
        """Return the server API, opened with the first request.

        Raises:
            SettingsError: The file of API keys is wrong.
        """
        from service.core.shedding import Shedding
        from service.http.api.keys import open_keys
        from service.http.function_routes import FunctionRuntime, open_function_routes

        base, gateway = self._base, self._gateway
        settings = self._settings.at_gateway
        keys = open_keys(settings, self._clock)
        base.checks.add("store", self._store_fault)
        base.checks.add("api_keys", keys.fault)
        runtime = FunctionRuntime(
            settings=settings,
            clock=self._clock,
            metrics=base.metrics,
            store=base.store,
            encoder=base.encoder,
            permissions=base.permissions,
            handlers=base.handlers,
            tickets=base.tickets,
            revocations=base.revocations,
            delivery=gateway.delivery,
            people=gateway.people,
            shedding=Shedding(settings.overload.calm, base.rng),
        )
        return open_function_routes(runtime, keys, base.checks)

    def _store_fault(self) -> Fault | None:
        reason = self._base.store.fault()
        return None if reason is None else Fault(reason, failing=False)

    async def _answer(self, event: Mapping[str, Any]) -> dict[str, Any]:
        try:
            arrival = from_event(event)
        except CodecError as error:
            log.error("an event of an unknown kind", reason=str(error))
            return {"statusCode": 200}
        answered = await answer(arrival, self._gateway.application, self._handshake)
        headers = {}
        if arrival.kind is Kind.CONNECT and answered.subprotocol:
            headers["Sec-WebSocket-Protocol"] = answered.subprotocol
        return {"statusCode": answered.status, "headers": headers}


def make_handler(handlers: Handlers, environ: Mapping[str, str]) -> Handler:
    """Return a function's handler, with hooks in Python.

    Args:
        handlers: The hooks; one that is None is asked over HTTP if the settings name an
            endpoint for it.
        environ: Variables with the settings: ``os.environ``.

    Raises:
        SteadwireError: The service cannot be opened.
    """
    function = _Function(environ, handlers)

    def handle(event: Mapping[str, Any], context: object) -> dict[str, Any]:
        """Handle one event."""
        return function(event)

    return handle


_made: list[Handler] = []


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """Handle one event, without hooks in Python."""
    if not _made:
        _made.append(make_handler(Handlers(), os.environ))
    return _made[0](event, context)


if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE"):
    _made.append(make_handler(Handlers(), os.environ))

gc.freeze()
gc.enable()

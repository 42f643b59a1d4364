"""Routing: which paths are served at which listener.

Without an address of its own the server API is served beside the clients. With one
(``api.port``) the API, the metrics and the statistics are served there alone: at the
other listener their paths do not exist, whatever key is shown. The socket of a
connection says which listener it came to, never a header; a server that does not say
it (any but ``steadwire serve``) has no listener of the API.

A path is served as it is written here, and in no other spelling: ``//api/info`` and
``/%61pi/info`` do not exist, for the rules of a proxy do not know them either.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NoReturn

import falcon.asgi

from service.core.errors import INTERNAL_CLOSE
from service.core.hooks import Handlers
from service.core.ports import Clock
from service.core.rate_limits import rate_of
from service.core.refusal_log import RefusalLog
from service.http.agui.openapi import DESCRIPTION
from service.http.agui.relay import Relay
from service.http.agui.routes import add_agui_routes
from service.http.api.keys import ApiKeys
from service.http.api.methods import add_routes
from service.http.asgi import RECEIVER, Receiver, below, not_found
from service.http.demo import Demo
from service.http.gauges import add_gauges
from service.http.health import Live, Ready
from service.http.metrics import MetricsResource, StatsResource
from service.runtime import Runtime
from service.settings import Settings
from service.transports.handshake_gate import PATH
from service.transports.websocket import WebSocketResource

__all__ = ["Routing", "open_routing"]

ADMIN = "steadwire.admin"
"""Key in the scope of a connection that came to ``api.port`` (service.server)."""

_STREAMS = ("/agui/", "/api/runs/")
"""Beginnings of paths that have names of threads and runs in them, and streams."""

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(rb"[-._~0-9A-Za-z/]")  # RFC 3986, 2.3; and what parts a path

_TEXT = 200  # characters of a path in the log

_App = falcon.asgi.App[Any, Any]


@asynccontextmanager
async def open_routing(
    settings: Settings,
    handlers: Handlers,
    clock: Clock,
    keys: ApiKeys,
    refusals: RefusalLog,
    stopping: asyncio.Event,
) -> AsyncIterator[Routing]:
    """Open a runtime, with hooks over HTTP where they are set, and make its routes.

    Args:
        settings: What the runtime is made of.
        handlers: Hooks in Python; they win over those over HTTP.
        clock: Of every timer.
        keys: The keys of the server API.
        refusals: Connections that the server cut off or did not serve.
        stopping: Set when the service is to end before it has started.

    Raises:
        SettingsError: A key or an endpoint is not valid.
        StartupError: The store cannot be opened.
    """
    async with AsyncExitStack() as stack:
        if settings.proxy.endpoints:
            from service.http.hooks_proxy import HooksProxy

            proxy = HooksProxy(settings.proxy, settings.tls)
            stack.push_async_callback(proxy.close)
            handlers = proxy.handlers(handlers)
        demo, agents = None, settings.agents
        if settings.has_page:
            demo = await Demo.open(clock)
            stack.push_async_callback(demo.close)
            agents = demo.agents(agents)
        runtime = await Runtime.open(settings, handlers, clock, stopping)
        stack.push_async_callback(runtime.aclose)
        relay = Relay(runtime, agents)
        stack.push_async_callback(relay.close)
        if settings.agents:
            await relay.prepare()
        unknown_paths = RefusalLog(logging.INFO)
        stack.callback(unknown_paths.close)
        yield Routing(runtime, keys, refusals, unknown_paths, relay, demo)


class Routing:
    """The resources of a running service, by listener.

    Attributes:
        runtime: The running service.
    """

    def __init__(
        self,
        runtime: Runtime,
        keys: ApiKeys,
        refusals: RefusalLog,
        unknown_paths: RefusalLog,
        relay: Relay,
        demo: Demo | None = None,
    ) -> None:
        self.runtime = runtime
        self._unknown_paths = unknown_paths
        runtime.checks.add("api_keys", keys.fault)
        add_gauges(runtime, keys, refusals)
        public = _new(runtime)
        public.add_route(PATH, WebSocketResource(runtime.context))
        if runtime.gateway is not None:
            self._add_gateway(public, runtime, refusals)
        if demo is not None:
            # With the page, not at the start: most servers of development run no agent.
            spawn = runtime.context.spawn
            demo.page(runtime, lambda: spawn(relay.prepare())).add_routes(public)
        separate = runtime.settings.api.port is not None
        admin = _new(runtime) if separate else public
        add_routes(admin, runtime, keys, DESCRIPTION)
        add_agui_routes(public, admin, runtime, keys, relay)
        admin.add_route("/metrics", MetricsResource(runtime, keys))
        admin.add_route("/stats", StatsResource(runtime, keys))
        self._public, self._admin = public, admin
        for routes in {public, admin}:
            routes.add_sink(self._unknown)

    @staticmethod
    def _add_gateway(routes: _App, runtime: Runtime, refusals: RefusalLog) -> None:
        """Serve the HTTP_PROXY integrations of an API Gateway, if it has a secret."""
        from service.gateway.handshake import Handshake
        from service.transports.apigateway import GATEWAY_PATH, GatewayResource

        settings, gateway = runtime.settings, runtime.gateway
        if gateway is None or not settings.gateway.secret:
            return
        rates = settings.effective_limits
        resource = GatewayResource(
            gateway.application,
            Handshake(
                settings.origins,
                rate_of(rates.connects_per_address, rates.burst),
                runtime.clock,
                refusals,
            ),
            settings.gateway.secret,
            refusals,
            runtime.clock,
        )
        for kind in ("connect", "message", "disconnect"):
            routes.add_route(f"{GATEWAY_PATH}/{kind}", resource, suffix=kind)

    async def serve(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Serve one HTTP request or WebSocket."""
        admin = scope.get(ADMIN)
        scope = below(scope)
        websocket = scope["type"] == "websocket"
        if not _is_plain(scope) or (websocket and admin):
            # Falcon logs a WebSocket without a route as an error, which strangers could
            # fill a log with.
            self._log(scope["path"], "a path is served in one spelling alone")
            await not_found(scope, receive, send)
        elif websocket:
            await self.runtime.gate.serve(self._public, scope, receive, send)
        else:
            receiver = Receiver(receive)
            scope = {**scope, RECEIVER: receiver}
            if scope["method"] == "HEAD" and not scope["path"].startswith(_STREAMS):
                # The server drops the body, as it does for every HEAD.
                scope["method"] = "GET"
            await (self._admin if admin else self._public)(scope, receiver, send)

    async def _unknown(
        self, req: falcon.asgi.Request, resp: object, **fields: object
    ) -> NoReturn:
        api = self.runtime.settings.api
        remedy = f"clients connect to {PATH}; the server API is at /api/"
        if api.port is not None:
            remedy += ", on api.port alone"
        self._log(req.path, remedy)
        raise falcon.HTTPRouteNotFound

    def _log(self, path: str, remedy: str) -> None:
        now = self.runtime.clock.now()
        self._unknown_paths.add("path", "", now, path=path[:_TEXT], remedy=remedy)


def _is_plain(scope: dict[str, Any]) -> bool:
    """Return whether the path was sent as it reads, with one slash at its start."""
    path = scope["path"]
    if not path.startswith("/") or path.startswith("//"):
        return False
    raw = scope.get("raw_path")
    if not raw:
        return True
    raw = raw.partition(b"?")[0]
    if not path.startswith(_STREAMS):
        return bool(raw.endswith(path.encode()))
    # A thread's name may need escapes; what needs none has none.
    escaped = map(bytes.fromhex, (each.decode() for each in _ESCAPE.findall(raw)))
    return not any(map(_UNRESERVED.fullmatch, escaped)) and b"%" not in path.encode()


def _new(runtime: Runtime) -> _App:
    routes = falcon.asgi.App()
    # Falcon's own receive queue would cost a task per connection.
    routes.ws_options.max_receive_queue = 0
    routes.ws_options.error_close_code = INTERNAL_CLOSE.code
    routes.ws_options.default_close_reasons[INTERNAL_CLOSE.code] = INTERNAL_CLOSE.reason
    routes.add_route("/health/live", Live())
    routes.add_route("/health/ready", Ready(runtime.checks))
    return routes

"""Which paths are served where: to clients, and to those who look after the service.

Without an address of its own the server API is served beside the clients. With one
(``api.port``) it, the figures and the console are there alone: elsewhere their paths
do not exist, whatever key is shown. Which listener a connection came to is what its
socket says, never a header; a server that does not say (any but ``steadwire serve``)
has no such listener.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import falcon.asgi

from service.connections.services import Services
from service.core.errors import INTERNAL_CLOSE
from service.http.api.context import ApiContext, ProcessInfo
from service.http.api.key import ApiKeys
from service.http.api.methods import add_routes
from service.http.health import Live, Ready
from service.http.metrics import MetricsResource, StatsResource
from service.settings import Settings
from service.transports.websocket import WebSocketResource

__all__ = ["Routing"]

ADMIN = "steadwire.admin"
"""Key in the scope of a connection that came to ``api.port`` (service.server)."""

_App = falcon.asgi.App[Any, Any]


class Routing:
    """The resources of the service, by listener.

    Args:
        settings: Say whether the API has an address of its own.
        services: The running service.
        node: This process.
        context: Of the server API.
        keys: Of the server API.
        health: What ``/health/ready`` answers with.
    """

    def __init__(
        self,
        settings: Settings,
        services: Callable[[], Services],
        node: Callable[[], ProcessInfo],
        context: ApiContext,
        keys: ApiKeys,
        health: Ready,
    ) -> None:
        public = _new(health)
        public.add_route("/connection/websocket", WebSocketResource(services))
        admin = public if settings.api.port is None else _new(health)
        add_routes(admin, context, settings.api, keys)
        admin.add_route("/metrics", MetricsResource(services, keys))
        admin.add_route("/stats", StatsResource(services, node, keys))
        self._public, self._admin = public, admin

    def of(self, scope: dict[str, Any]) -> _App:
        """Return what is served to a connection."""
        return self._admin if scope.get(ADMIN) else self._public


def _new(health: Ready) -> _App:
    routes = falcon.asgi.App()
    # Falcon's own receive queue would cost a task per connection.
    routes.ws_options.max_receive_queue = 0
    routes.ws_options.error_close_code = INTERNAL_CLOSE.code
    routes.ws_options.default_close_reasons[INTERNAL_CLOSE.code] = INTERNAL_CLOSE.reason
    routes.add_route("/health/live", Live())
    routes.add_route("/health/ready", health)
    return routes

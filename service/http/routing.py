"""Which paths are served where: to clients, and to those who look after the service.

Without an address of its own the server API is served beside the clients. With one
(``api.port``) it, the figures and the console are there alone: elsewhere their paths
do not exist, whatever key is shown. Which listener a connection came to is what its
socket says, never a header; a server that does not say (any but ``steadwire serve``)
has no such listener.
"""

from __future__ import annotations

from typing import Any

import falcon.asgi

from service.core.errors import INTERNAL_CLOSE
from service.http.api.keys import ApiKeys
from service.http.api.methods import add_routes
from service.http.health import Live, Ready
from service.http.metrics import MetricsResource, StatsResource
from service.runtime import Runtime
from service.transports.websocket import WebSocketResource

__all__ = ["Routing"]

ADMIN = "steadwire.admin"
"""Key in the scope of a connection that came to ``api.port`` (service.server)."""

_App = falcon.asgi.App[Any, Any]


class Routing:
    """The resources of a running service, by listener.

    Args:
        runtime: What they show and act on.
        keys: Of the server API.
    """

    def __init__(self, runtime: Runtime, keys: ApiKeys) -> None:
        public = _new(runtime)
        public.add_route("/connection/websocket", WebSocketResource(runtime.context))
        own = runtime.settings.api.port is not None
        admin = _new(runtime) if own else public
        add_routes(admin, runtime, keys)
        admin.add_route("/metrics", MetricsResource(runtime, keys))
        admin.add_route("/stats", StatsResource(runtime, keys))
        self._public, self._admin = public, admin

    def of(self, scope: dict[str, Any]) -> _App:
        """Return what is served to a connection."""
        return self._admin if scope.get(ADMIN) else self._public


def _new(runtime: Runtime) -> _App:
    routes = falcon.asgi.App()
    # Falcon's own receive queue would cost a task per connection.
    routes.ws_options.max_receive_queue = 0
    routes.ws_options.error_close_code = INTERNAL_CLOSE.code
    routes.ws_options.default_close_reasons[INTERNAL_CLOSE.code] = INTERNAL_CLOSE.reason
    routes.add_route("/health/live", Live())
    routes.add_route("/health/ready", Ready(runtime.checks))
    return routes

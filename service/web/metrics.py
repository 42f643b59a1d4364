"""``/metrics`` for Prometheus, and ``/stats``: the same figures as JSON."""

from __future__ import annotations

from collections.abc import Callable

import falcon
import falcon.asgi
import ujson

from service.metrics import CONTENT_TYPE, figures, text
from service.transports.services import Services
from service.web.api.context import Node
from service.web.api.key import ApiKey

__all__ = ["MetricsResource", "StatsResource"]


class MetricsResource:
    """``/metrics``, for who shows the API's key."""

    def __init__(self, services: Callable[[], Services], key: ApiKey) -> None:
        self._services = services
        self._key = key

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer with all metrics in the text format."""
        if not self._key.admits(req):
            resp.status = falcon.HTTP_401
            return
        resp.content_type = CONTENT_TYPE
        resp.data = text(self._services().metrics)


class StatsResource:
    """``/stats``, for who shows the API's key."""

    def __init__(
        self,
        services: Callable[[], Services],
        node: Callable[[], Node],
        key: ApiKey,
    ) -> None:
        self._services = services
        self._node = node
        self._key = key

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer with all metrics, what is wrong, and which node this is."""
        if not self._key.admits(req):
            resp.status = falcon.HTTP_401
            return
        services, node = self._services(), self._node()
        resp.content_type = falcon.MEDIA_JSON
        resp.text = ujson.dumps(
            {
                "node": {
                    "uid": node.uid,
                    "name": node.name,
                    "version": services.version,
                    "uptime": services.clock.now() - node.started,
                },
                "faults": {
                    name: {"reason": fault.reason, "failing": fault.failing}
                    for name, fault in services.checks.faults().items()
                },
                "metrics": figures(services.metrics),
            }
        )

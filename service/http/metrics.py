"""``/metrics`` for Prometheus, and ``/stats``: the same figures as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import falcon
import falcon.asgi
import ujson

from service.auth import Scope
from service.connections.services import Services
from service.http.api.context import ProcessInfo
from service.http.api.key import ApiKeys
from service.metrics import CONTENT_TYPE, figures, text

__all__ = ["MetricsResource", "StatsResource"]


class MetricsResource:
    """``/metrics``, for who shows a key that grants reading."""

    def __init__(self, services: Callable[[], Services], keys: ApiKeys) -> None:
        self._services = services
        self._keys = keys

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer with all metrics in the text format."""
        if not await _may_read(self._keys, req, resp):
            return
        resp.content_type = CONTENT_TYPE
        resp.data = text(self._services().metrics)


class StatsResource:
    """``/stats``, for who shows a key that grants reading."""

    def __init__(
        self,
        services: Callable[[], Services],
        node: Callable[[], ProcessInfo],
        keys: ApiKeys,
    ) -> None:
        self._services = services
        self._node = node
        self._keys = keys

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer with all metrics, what is wrong, and which node this is."""
        if not await _may_read(self._keys, req, resp):
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
                "connections": _summary(services),
                "faults": {
                    name: {"reason": fault.reason, "failing": fault.failing}
                    for name, fault in services.checks.faults().items()
                },
                "metrics": figures(services.metrics),
            }
        )


def _summary(services: Services) -> dict[str, object]:
    registry = services.connections
    levels = Counter(
        record.connection.liveness.level.value for record in registry.slots()
    )
    return {
        "total": len(registry),
        "alive": registry.connected,
        "pending": registry.states()["pending"],
        "levels": levels,
    }


async def _may_read(
    keys: ApiKeys, req: falcon.asgi.Request, resp: falcon.asgi.Response
) -> bool:
    key = await keys.admit(req)
    if key is None:
        resp.status = falcon.HTTP_401
    elif not key.allows(Scope.READ):
        resp.status = falcon.HTTP_403
    else:
        return True
    return False

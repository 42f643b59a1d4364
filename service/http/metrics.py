"""``/metrics`` for Prometheus, and ``/stats`` with the same figures as JSON."""

from __future__ import annotations

from collections import Counter

import falcon
import falcon.asgi
import ujson

from service.auth.api_keys import Scope
from service.http.api.keys import ApiKeys
from service.metrics.exposition import CONTENT_TYPE, figures, text
from service.runtime import Runtime

__all__ = ["MetricsResource", "StatsResource"]


class MetricsResource:
    """``/metrics``; needs a key that grants reading."""

    def __init__(self, runtime: Runtime, keys: ApiKeys) -> None:
        self._runtime = runtime
        self._keys = keys

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer with all metrics in the text format."""
        if not await _may_read(self._keys, req, resp):
            return
        resp.content_type = CONTENT_TYPE
        resp.data = text(self._runtime.metrics)


class StatsResource:
    """``/stats``; needs a key that grants reading."""

    def __init__(self, runtime: Runtime, keys: ApiKeys) -> None:
        self._runtime = runtime
        self._keys = keys

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer with all metrics, the faults, the shed level, and this node."""
        if not await _may_read(self._keys, req, resp):
            return
        runtime, node = self._runtime, self._runtime.node
        resp.content_type = falcon.MEDIA_JSON
        resp.text = ujson.dumps(
            {
                "node": {
                    "uid": node.uid,
                    "name": node.name,
                    "version": node.version,
                    "uptime": runtime.clock.now() - node.started,
                },
                "connections": _summary(runtime),
                "faults": {
                    name: {"reason": fault.reason, "failing": fault.failing}
                    for name, fault in runtime.checks.faults().items()
                },
                "overload": {
                    "level": runtime.shedding.level,
                    "causes": runtime.shedding.causes,
                },
                "metrics": figures(runtime.metrics),
            }
        )


def _summary(runtime: Runtime) -> dict[str, object]:
    registry = runtime.connections
    levels = Counter(
        record.connection.keepalive.level.value for record in registry.slots()
    )
    states = registry.states()
    return {
        "total": len(registry),
        "alive": registry.connected,
        "pending": states["pending"],
        "closing": states["closing"],
        "levels": levels,
        "pending_pings": sum(one.keepalive.pending for one in registry),
        "queued_bytes": sum(one.queued_bytes for one in registry),
    }


async def _may_read(
    keys: ApiKeys, req: falcon.asgi.Request, resp: falcon.asgi.Response
) -> bool:
    key = await keys.authenticate(req)
    if key is None:
        resp.status = falcon.HTTP_401
    elif not key.allows(Scope.READ):
        resp.status = falcon.HTTP_403
    else:
        return True
    return False

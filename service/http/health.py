"""``/health/live`` and ``/health/ready``."""

from __future__ import annotations

import falcon
import falcon.asgi
import ujson

from service.core.health import Checks

__all__ = ["Live", "Ready"]


class Live:
    """``/health/live``: answers while the event loop runs; else restart the process."""

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer that the process is alive."""
        resp.content_type = falcon.MEDIA_JSON
        resp.text = '{"status":"live"}'


class Ready:
    """``/health/ready``: whether traffic can be sent to this process.

    Args:
        checks: The checks that find faults.
    """

    def __init__(self, checks: Checks) -> None:
        self._checks = checks

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer 200 when ready or degraded, else 503, with the reasons."""
        resp.content_type = falcon.MEDIA_JSON
        faults = self._checks.faults()
        if not faults:
            resp.text = '{"status":"ready"}'
            return
        failing = any(fault.failing for fault in faults.values())
        # The reason of a failing check comes first.
        order = sorted(faults.values(), key=lambda fault: not fault.failing)
        if failing:
            resp.status = falcon.HTTP_503
        resp.text = ujson.dumps(
            {
                "status": "unavailable" if failing else "degraded",
                "reason": order[0].reason,
                "checks": {name: fault.reason for name, fault in faults.items()},
            }
        )

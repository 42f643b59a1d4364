"""``/health/live`` and ``/health/ready``: is the process alive, can it serve."""

from __future__ import annotations

from collections.abc import Callable

import falcon
import falcon.asgi
import ujson

__all__ = ["Live", "Ready"]


class Live:
    """The event loop answers; restart the process when it does not."""

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer that the process is alive."""
        resp.content_type = falcon.MEDIA_JSON
        resp.text = '{"status":"live"}'


class Ready:
    """Traffic can be sent here.

    Args:
        fault: Returns why not, in a few words, or None.
    """

    def __init__(self, fault: Callable[[], str | None]) -> None:
        self._fault = fault

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response
    ) -> None:
        """Answer 200 when ready, else 503 with the reason."""
        resp.content_type = falcon.MEDIA_JSON
        reason = self._fault()
        if reason is None:
            resp.text = '{"status":"ready"}'
        else:
            resp.status = falcon.HTTP_503
            resp.text = ujson.dumps({"status": "unavailable", "reason": reason})

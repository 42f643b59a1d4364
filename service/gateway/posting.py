"""Posts to connections at the gateway, each with one of four outcomes.

A POST that was repeated after an unknown outcome would be delivered twice, so nothing
is repeated but what certainly did not reach the client: 429, and what was never
written. Whoever gets any other outcome than `Posted.DELIVERED` closes the connection.
"""

from __future__ import annotations

import asyncio
from random import Random
from urllib.parse import quote

from _speedups import backoff_full_jitter
from service.core.model import ClientId
from service.core.ports import Clock, Posted
from service.gateway.http_pool import NoAnswer, NotSent, Response
from service.gateway.signed_calls import SignedCalls

__all__ = ["ATTEMPTS", "CallbackPosts"]

TIMEOUT = 2.0  # s for each attempt
TOTAL = 3.0  # s for a call with all of its attempts
ATTEMPTS = 3  # of a post that the gateway did not take, and of a DELETE
BASE, CAP = 0.1, 0.4  # s; of the pauses between them


class CallbackPosts:
    """`ports.Posts` through the ``@connections`` API.

    Args:
        calls: Of the API's stage.
        clock: Of the pauses.
        rng: Spreads the pauses.
    """

    def __init__(self, calls: SignedCalls, clock: Clock, rng: Random) -> None:
        self._calls = calls
        self._clock = clock
        self._rng = rng

    async def post(self, client: ClientId, text: str) -> Posted:
        """Write one message to a connection."""
        body = text.encode()
        outcome = Posted.BUSY
        end = self._clock.now() + TOTAL
        for attempt in range(ATTEMPTS):
            if attempt:
                await self._pause(attempt - 1)
            try:
                response = await self._call("POST", client, body, end)
            except NotSent:
                continue
            except NoAnswer:
                return Posted.UNKNOWN
            outcome = _POSTED.get(response.status, Posted.UNKNOWN)
            if outcome is not Posted.BUSY:
                break
        return outcome

    async def delete(self, client: ClientId) -> bool:
        """Close a connection; True once nothing reaches it any more."""
        end = self._clock.now() + TOTAL
        for attempt in range(ATTEMPTS):
            if attempt:
                await self._pause(attempt - 1)
            try:
                response = await self._call("DELETE", client, b"", end)
            except (NotSent, NoAnswer):
                continue
            if response.status in (204, 410):
                return True
        return False

    def thawed(self) -> None:
        """Use no connection of before: this process may have been frozen."""
        self._calls.drop_idle()

    async def _call(
        self, method: str, client: ClientId, body: bytes, end: float
    ) -> Response:
        left = min(TIMEOUT, end - self._clock.now())
        if left <= 0.0:
            raise NotSent("no time is left")
        # The id ends in "=".
        path = f"/@connections/{quote(client, safe='')}"
        return await self._calls.call(method, path, body, left)

    async def _pause(self, attempt: int) -> None:
        seconds = backoff_full_jitter(attempt, self._rng.random(), BASE, CAP)
        over = asyncio.Event()
        timer = self._clock.call_at(self._clock.now() + seconds, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()


_POSTED = {
    200: Posted.DELIVERED,
    204: Posted.DELIVERED,  # serverless-offline; AWS's own SDKs take it for success too
    410: Posted.GONE,
    429: Posted.BUSY,
}

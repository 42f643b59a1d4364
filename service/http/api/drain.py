"""``/api/drain``: take no more clients and send those that are here away."""

from __future__ import annotations

from typing import Literal

import msgspec

from service.http.api.context import ApiContext, Integer

__all__ = ["DrainRequest", "DrainResult", "drain"]


class DrainRequest(msgspec.Struct):
    """Drain this server, or read how far it is."""


class DrainResult(msgspec.Struct):
    """How far the drain is.

    Attributes:
        state: ``draining``, then ``drained``: no connection is left.
        connections: Connections that are open (count).
    """

    state: Literal["draining", "drained"]
    connections: Integer


async def drain(context: ApiContext, request: DrainRequest) -> str:
    """Begin to drain, and answer at once; a repeated call only answers."""
    runtime = context.resident
    runtime.drain.begin()
    left = len(runtime.connections)
    return f'{{"state":"{runtime.drain.state}","connections":{left}}}'

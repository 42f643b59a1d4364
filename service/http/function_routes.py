"""Routes of a Lambda function: the server API and the health of one environment.

What needs a process that holds connections is answered with error 108 (`drain`,
`info`, `channels`), or does not exist (metrics, streams and runs of agents).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import falcon.asgi

from service.agents.thread import segments_of
from service.auth.permissions import Permissions
from service.auth.revocations import Revocations
from service.auth.tickets import Tickets
from service.core.health import Checks
from service.core.hooks import Handlers
from service.core.model import Channel
from service.core.people import People
from service.core.ports import Clock, Delivery, Store
from service.core.shedding import Shedding
from service.http.api.keys import ApiKeys
from service.http.api.methods import add_routes
from service.http.health import Live, Ready
from service.metrics import Metrics
from service.payload.encoder import PayloadEncoder
from service.settings import Settings

__all__ = ["FunctionRuntime", "open_function_routes"]


class _Threads:
    """Threads of agents, of which a function keeps nothing in memory."""

    def __init__(self, permissions: Permissions, store: Store) -> None:
        self._permissions = permissions
        self._store = store

    async def remove(self, channel: Channel) -> None:
        if self._permissions.rules(channel).runs_only:
            await self._store.remove(segments_of(channel))

    def forget(self) -> None:
        """There is nothing to forget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionRuntime:
    """`api.context.ApiRuntime` of a function; the attributes are those of `Runtime`."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    store: Store
    encoder: PayloadEncoder
    permissions: Permissions
    handlers: Handlers
    tickets: Tickets
    revocations: Revocations
    delivery: Delivery
    people: People
    shedding: Shedding

    @property
    def threads(self) -> _Threads:
        """What is kept of threads."""
        return _Threads(self.permissions, self.store)

    @property
    def resident(self) -> None:
        """A function holds no connections."""
        return None


def open_function_routes(
    runtime: FunctionRuntime, keys: ApiKeys, checks: Checks
) -> falcon.asgi.App[Any, Any]:
    """Return the application that answers the requests of a function."""
    routes: falcon.asgi.App[Any, Any] = falcon.asgi.App()
    routes.add_route("/health/live", Live())
    routes.add_route("/health/ready", Ready(checks))
    add_routes(routes, runtime, keys)
    return routes

"""Routes of AG-UI over HTTP, and their metrics."""

from __future__ import annotations

from typing import Any

import falcon.asgi

from service.http.agui.access import Access
from service.http.agui.ingest import Control, Ingest
from service.http.agui.relay import Relay
from service.http.agui.runs import Cancel, CancelInThread, RunAgent
from service.http.agui.threads import Events, SnapshotResource, Viewers
from service.http.api.keys import ApiKeys
from service.runtime import Runtime

__all__ = ["add_agui_routes"]

_App = falcon.asgi.App[Any, Any]


def add_agui_routes(
    public: _App, admin: _App, runtime: Runtime, keys: ApiKeys, relay: Relay
) -> None:
    """Serve runs and threads to clients, and take events of agents that push.

    Args:
        public: What clients are served.
        admin: What callers of the server API are served; it may be the same.
        runtime: The running service.
        keys: The keys of the server API.
        relay: The agents of the settings.
    """
    access, viewers = Access(runtime), Viewers(runtime)
    public.add_route("/agui/threads/{thread}/events", Events(runtime, access, viewers))
    public.add_route(
        "/agui/threads/{thread}/snapshot", SnapshotResource(runtime, access)
    )
    public.add_route("/agui/{agent}", RunAgent(runtime, access, relay, viewers))
    public.add_route("/agui/{agent}/runs/{run}/cancel", Cancel(runtime, access, relay))
    public.add_route(
        "/agui/threads/{thread}/runs/{run}/cancel",
        CancelInThread(runtime, access, relay),
    )
    admin.add_route("/api/runs/{thread}/{run}/events", Ingest(runtime, keys))
    admin.add_route("/api/runs/{thread}/{run}/control", Control(runtime, keys))
    metrics = runtime.metrics
    metrics.gauge(
        "streams",
        "Streams of viewers over HTTP that are open.",
        lambda: len(runtime.streams),
    )
    metrics.total(
        "streams_ended",
        "Streams of viewers over HTTP that have ended, by the reason: gone, the peer; "
        "over, the run; told, by a drain, an expiry, a revocation or the API; slow, it "
        "did not take what was written; passed, the history does not have its next "
        "event any more; store, a read failed.",
        lambda: viewers.outcomes,
        "reason",
    )
    metrics.gauge(
        "runs_relayed",
        "Runs of agents of the settings that are under way.",
        lambda: len(relay),
    )
    metrics.total(
        "runs_ended",
        "Runs of agents of the settings that have ended, by the reason: finished, by "
        "the agent; cancelled; lost, the agent; refused, for an event of it that "
        "the protocol does not allow.",
        lambda: relay.outcomes,
        "reason",
    )

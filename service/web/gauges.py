"""What there is at the moment, read at each scrape from where it is."""

from __future__ import annotations

from service.logs import dropped
from service.transports.services import Services
from service.transports.watch import Watch

__all__ = ["add_gauges"]


def add_gauges(services: Services, watch: Watch) -> None:
    """Show what the registry, the hub, the checks and the watch of a service hold."""
    metrics, registry, hub = services.metrics, services.connections, services.hub

    def connections() -> dict[str, float]:
        connected = registry.connected
        return {"connected": connected, "pending": len(registry) - connected}

    metrics.gauge(
        "connections",
        "Open connections: those that have connected, and those that have yet to.",
        connections,
        "state",
    )
    metrics.gauge(
        "users", "Different users that are connected.", lambda: registry.users
    )
    metrics.gauge(
        "channels", "Channels that have subscribers.", lambda: len(hub.counts())
    )
    metrics.gauge(
        "subscriptions",
        "Subscriptions, over all channels.",
        lambda: sum(hub.counts().values()),
    )
    metrics.total(
        "messages_sent",
        "Messages handed to clients' sockets: replies, pushes and pings.",
        lambda: metrics.sent.value + sum(one.outbox.sent for one in registry),
    )
    metrics.total(
        "log_lines_dropped",
        "Lines of this process's log that nobody will read: too many waited, or they "
        "could not be written.",
        dropped,
    )
    metrics.gauge(
        "queued_bytes",
        "Bytes that wait for clients' sockets.",
        lambda: sum(one.outbox.size for one in registry),
    )
    metrics.gauge(
        "loop_lag_max_seconds",
        "The largest lag of the event loop in the last one to two minutes.",
        lambda: watch.worst,
    )
    metrics.gauge(
        "health",
        "0 when all is well, 1 when clients are served and somebody should look, 2 "
        "when traffic should go elsewhere; by check.",
        services.checks.levels,
        "check",
    )

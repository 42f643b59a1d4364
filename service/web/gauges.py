"""What there is at the moment, read at each scrape from where it is."""

from __future__ import annotations

from service.transports.driver import Services

__all__ = ["add_gauges"]


def add_gauges(services: Services) -> None:
    """Show what the registry, the hub and the checks of *services* hold."""
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
    metrics.gauge(
        "health",
        "0 when all is well, 1 when clients are served and somebody should look, 2 "
        "when traffic should go elsewhere; by check.",
        services.checks.levels,
        "check",
    )

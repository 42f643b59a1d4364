"""Hints between the processes of a deployment, over Valkey or Redis.

The client library is imported only when the settings name a broker: it is an optional
extra, and takes as long to import as half of the service.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from service.core.errors import StartupError
from service.core.ports import Clock
from service.metrics import Metrics
from service.settings import BrokerSettings

if TYPE_CHECKING:
    from service.broker.valkey import ValkeyBroker

__all__ = ["add_broker_metrics", "make_broker"]


def make_broker(
    settings: BrokerSettings, node: str, clock: Clock, rng: random.Random
) -> ValkeyBroker | None:
    """Return the broker that *settings* name, not started; None if they name none.

    Raises:
        StartupError: Its client library is not installed.
    """
    if not settings.url:
        return None
    try:
        from service.broker.valkey import ValkeyBroker
    except ModuleNotFoundError as error:
        raise StartupError(
            "broker.url needs the library `redis`: pip install 'steadwire[valkey]'"
        ) from error
    return ValkeyBroker(settings, node, clock, rng)


def add_broker_metrics(metrics: Metrics, broker: ValkeyBroker | None) -> None:
    """Show what *broker* counts. Every metric is there without one, too."""
    metrics.gauge(
        "broker_connected",
        "1 while a broker carries hints between servers.",
        lambda: float(broker is not None and broker.fault() is None),
    )
    metrics.total(
        "broker_hints",
        "Signed hints that came from other servers.",
        lambda: 0 if broker is None else broker.received,
    )
    metrics.total(
        "broker_refused",
        "Messages on the broker that no server of this deployment has signed.",
        lambda: 0 if broker is None else broker.refused,
    )
    metrics.total(
        "broker_dropped",
        "Publications without history, notices, and who types, that could not be sent "
        "to other servers.",
        lambda: 0 if broker is None else broker.dropped,
    )

"""Figures of one node: what the server API's ``info`` shows of it.

Each node keeps them in its row, so that every other can show them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from service.connections.registry import Registry
from service.core.people import Rtt
from service.core.ports import Clock
from service.hub.hub import Hub

__all__ = ["NodeFigures"]


class NodeFigures:
    """The figures of this node.

    Args:
        uid: New with each start.
        name: Of the machine.
        version: Of this package.
        started: Time of the start, on the clock.
        connections: Its connections.
        hub: Its channels.
        clock: Tells how long it runs.
    """

    def __init__(
        self,
        *,
        uid: str,
        name: str,
        version: str,
        started: float,
        connections: Registry,
        hub: Hub,
        clock: Clock,
    ) -> None:
        self._about = {"uid": uid, "name": name, "version": version}
        self._started = started
        self._connections = connections
        self._hub = hub
        self._clock = clock

    def text(self) -> str:
        """Return the figures of this moment, as an object of the API's JSON."""
        counts = self._hub.counts()
        rtts = [
            Rtt.of(rtt)
            for one in self._connections
            if (rtt := one.keepalive.rtt) is not None
        ]
        figures = {
            **self._about,
            "num_clients": self._connections.connected,
            "num_users": self._connections.users,
            "num_subs": sum(counts.values()),
            "num_channels": len(counts),
            "uptime": int(self._clock.now() - self._started),
            "metrics": {"interval": 0.0, "items": _rtt_totals(rtts)},
        }
        return msgspec.json.encode(figures).decode()


def _rtt_totals(found: Sequence[Rtt]) -> dict[str, float]:
    """Return the round-trip times over the present connections."""
    smoothed = [one.smoothed for one in found if one.samples]
    return {
        "rtt.connections": float(len(smoothed)),
        "rtt.smoothed_mean_seconds": sum(smoothed) / len(smoothed) if smoothed else 0.0,
        "rtt.smoothed_max_seconds": max(smoothed, default=0.0),
        "rtt.samples": float(sum(one.samples for one in found)),
        "rtt.outliers": float(sum(one.outliers for one in found)),
        "rtt.rejected": float(sum(one.rejected for one in found)),
        "rtt.clock_skew_corrections": float(
            sum(one.clock_skew_corrections for one in found)
        ),
    }

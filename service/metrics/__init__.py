"""Metrics of a service: `Metrics` counts, the module `exposition` shows the counts.

That one is imported only where something is shown: it takes a library, at each start.
"""

from __future__ import annotations

from service.metrics.definitions import PROTOCOL_CLOSES, Metrics

__all__ = ["PROTOCOL_CLOSES", "Metrics"]

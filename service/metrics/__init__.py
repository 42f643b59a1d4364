"""Metrics of a service: `Metrics` counts, `text` and `figures` show the counts."""

from __future__ import annotations

from service.metrics.definitions import PROTOCOL_CLOSES, Metrics
from service.metrics.exposition import CONTENT_TYPE, figures, text

__all__ = [
    "CONTENT_TYPE",
    "PROTOCOL_CLOSES",
    "Metrics",
    "figures",
    "text",
]

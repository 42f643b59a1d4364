"""What happened, counted: `Metrics` holds it, `text` and `figures` show it."""

from __future__ import annotations

from service.metrics.exposition import CONTENT_TYPE, figures, text
from service.metrics.table import PROTOCOL_CLOSES, Metrics

__all__ = [
    "CONTENT_TYPE",
    "PROTOCOL_CLOSES",
    "Metrics",
    "figures",
    "text",
]

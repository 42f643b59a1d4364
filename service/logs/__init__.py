"""The log of the process: its setup, the line formatter and the sink."""

from __future__ import annotations

from service.logs.setup import configure, dropped, flush

__all__ = ["configure", "dropped", "flush"]

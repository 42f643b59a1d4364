"""The log of the process: what a line looks like, and how it gets out."""

from __future__ import annotations

from service.logs.setup import configure, dropped

__all__ = ["configure", "dropped"]

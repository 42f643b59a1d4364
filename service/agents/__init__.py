"""Agent runs: AG-UI events, threads, runs and those who follow them."""

from __future__ import annotations

from service.agents.run import Run

__all__ = ["Run"]

"""Paths, command lines and environments of the processes that tests start."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ROOT", "TOOLS", "environment", "launched"]

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"

_LAUNCH = Path(__file__).with_name("launch.py")


def launched(*command: str | Path) -> list[str]:
    """Return *command* so that it dies with the test process, however that ends."""
    # -I -S: no site-packages to look through, a few milliseconds each time.
    return [sys.executable, "-I", "-S", str(_LAUNCH), *map(str, command)]


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process under test.

    Without the developer's own settings of the service, and without proxies, which
    the SDKs would use even for the loopback.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("STEADWIRE_") and not name.lower().endswith("_proxy")
    }
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **settings}

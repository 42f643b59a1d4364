"""Paths, command lines and environments of the processes that tests start."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

__all__ = ["ROOT", "TOOLS", "environment", "launched", "stopped"]

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"

_LAUNCH = Path(__file__).with_name("launch.py")


def launched(*command: str | Path) -> list[str]:
    """Return *command* so that it dies with the test process, however that ends."""
    # -I -S: no site-packages to look through, a few milliseconds each time.
    return [sys.executable, "-I", "-S", str(_LAUNCH), *map(str, command)]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process stand still: all that comes meanwhile is there when it goes on."""
    os.kill(pid, signal.SIGSTOP)
    try:
        # A signal is sent before it is received.
        while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


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

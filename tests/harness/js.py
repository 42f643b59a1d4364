"""The JavaScript SDK: many clients in one node process."""

from __future__ import annotations

from pathlib import Path

from tests.harness.process import TOOLS
from tests.harness.sdk import ProcessHost
from tests.harness.tools import node

__all__ = ["start_js"]

_PROGRAM = Path(__file__).with_name("jsclient.mjs")
_PACKAGES = {"5.8.0": "centrifuge", "5.5.3": "centrifuge-old"}


async def start_js(version: str) -> ProcessHost:
    """Start a host of clients of npm ``centrifuge`` at *version*."""
    package = _PACKAGES[version]
    executable = node(package, "ws")
    return await ProcessHost.start(
        f"js-{version}", executable, _PROGRAM, TOOLS, package, version
    )

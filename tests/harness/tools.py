"""Paths of the tools that tests/tools/install installs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from tests.harness.process import TOOLS

__all__ = ["check", "chromium", "missing", "node", "old_python", "proxy"]


def missing(what: str, command: str) -> NoReturn:
    """End the test: a failure under CI=true, otherwise a skip that says what to run."""
    message = f"{what} is missing; run: {command}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def node(*packages: str) -> Path:
    """Return the path of node, with npm *packages* installed beside the tests."""
    executable = shutil.which("node")
    if executable is None:
        missing(
            "node",
            "sudo apt-get update && sudo apt-get install -y nodejs npm"
            " && tests/tools/install",
        )
    for package in packages:
        if not (TOOLS / "node_modules" / package / "package.json").is_file():
            missing(f"npm package {package}", "tests/tools/install")
    return Path(executable)


def old_python() -> Path:
    """Return the path of the Python interpreter that has the old SDK."""
    executable = TOOLS / "old-sdk" / "bin" / "python"
    if not executable.is_file() or not (TOOLS / "old-sdk.stamp").is_file():
        missing("centrifuge-python 0.4.4", "tests/tools/install")
    return executable


def check(name: str) -> Path:
    """Return the path of a tool of tests/tools/checks.txt by its command's name."""
    executable = TOOLS / "checks" / "bin" / name
    if not executable.is_file() or not (TOOLS / "checks.stamp").is_file():
        missing(name, "tests/tools/install")
    return executable


def proxy(name: str) -> Path:
    """Return the path of the HTTP proxy *name*, which the system's packages bring."""
    executable = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if executable is None:
        missing(name, "sudo tests/tools/install")
    return Path(executable)


def chromium() -> Path:
    """Return the path of the system's Chromium."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (executable := shutil.which(name)) is not None:
            return Path(executable)
    missing("chromium", "sudo apt-get update && sudo apt-get install -y chromium")

"""Look at an installed wheel: compiled, complete, and able to start.

A program for the environment that the wheel is installed in, without pytest and without
this repository on its path.
"""

from __future__ import annotations

import importlib.resources
import subprocess
import sys

import _speedups
import service

PAGE = importlib.resources.files(service) / "demo" / "page"

assert _speedups.COMPILED, "the extensions are not compiled"
assert (PAGE / "index.html").is_file(), "the page of development is missing"
shown = subprocess.run(
    [sys.executable, "-m", "service", "settings"], capture_output=True, text=True
)
assert shown.returncode == 0, shown.stderr
assert "STEADWIRE_SERVER_PORT" in shown.stdout
print(service.__file__)

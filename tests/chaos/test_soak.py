"""The soak test's own script, for half a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.requirement("B14")
def test_half_a_minute_of_the_soak() -> None:
    command = [sys.executable, "benchmarks/soak.py", "--minutes", "0.5"]
    done = subprocess.run(
        [*command, "--clients", "50"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert " 0 connects failed" in done.stdout

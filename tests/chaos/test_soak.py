"""The soak test's own script, for half a minute."""

from __future__ import annotations

import re
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
    # A message a second for each, at least; every one of them was checked.
    delivered = re.search(r"^([\d,]+) delivered", done.stdout, re.MULTILINE)
    assert delivered is not None, done.stdout
    assert int(delivered[1].replace(",", "")) >= 50 * 30

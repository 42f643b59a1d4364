"""The proof passes as users run it, and fails when a figure is another one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROOF = Path("tests", "standalone", "proof.py")


def run(folder: Path, *scenarios: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / PROOF), *scenarios]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.requirement("R52", "B30")
def test_every_scenario_has_its_figures() -> None:
    done = run(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.splitlines()[:-1]) == [
        "PASS  cleanup        0 -> 50 -> 18 cleaned (6 gone, 6 x 3012, 6 x 3011) -> 32",
        "PASS  errors         20 attempted, 16 delivered, connection healthy, "
        "then 20 of 20",
        "PASS  heartbeat      5 registered, 3 healthy, 2 stale; one resurrected: 4; "
        "purged at 2 x",
        "PASS  isolation      10 users, 50 of 50 messages, 0 foreign",
        "PASS  serialization  6 of 6 serialized as strict JSON (and 5 more)",
    ]
    assert done.stdout.splitlines()[-1].startswith("5 of 5 scenarios in ")


@pytest.mark.requirement("R52")
@pytest.mark.parametrize(
    ("scenario", "figure", "wrong"),
    [
        ("isolation", "actual, 50", "actual, 51"),
        ("serialization", '"AP8="', '"AP8"'),
    ],
)
def test_another_figure_is_a_failure(
    scenario: str, figure: str, wrong: str, tmp_path: Path
) -> None:
    text = (ROOT / PROOF).read_text()
    assert text.count(figure) == 1
    (tmp_path / PROOF).parent.mkdir(parents=True)
    (tmp_path / PROOF).write_text(text.replace(figure, wrong))
    for package in ("service", "_speedups"):
        (tmp_path / package).symlink_to(ROOT / package)
    done = run(tmp_path, scenario)
    assert done.returncode == 1
    assert done.stdout.startswith(f"FAIL  {scenario}")


def test_a_name_that_no_scenario_has_is_a_failure() -> None:
    assert run(ROOT, "nothing").returncode == 1

"""clients/agui in Node.js: its own tests, with the protocol's verifier."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness.process import ROOT, TOOLS
from tests.harness.tools import node

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["threads", "agent"])
def test_in_node(tmp_path: Path, name: str) -> None:
    executable = node("@ag-ui/client", "rxjs", "centrifuge")
    # Copies: packages are looked for beside the real place of a module.
    shutil.copytree(ROOT / "clients" / "agui", tmp_path / "agui")
    for program in HERE.glob("*.mjs"):
        shutil.copy(program, tmp_path)
    (tmp_path / "node_modules").symlink_to(TOOLS / "node_modules")
    ended = subprocess.run(
        [executable, "--test", f"{name}.test.mjs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]

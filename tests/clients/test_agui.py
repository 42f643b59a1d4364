"""clients/agui in Node.js: its own tests, with the protocol's verifier."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness.process import ROOT, TOOLS, environment
from tests.harness.server import Server
from tests.harness.tools import node

HERE = Path(__file__).parent


def run_in_node(folder: Path, name: str, **variables: str) -> None:
    executable = node("@ag-ui/client", "rxjs", "centrifuge")
    # Copies: packages are looked for beside the real place of a module.
    shutil.copytree(ROOT / "clients" / "agui", folder / "agui")
    for program in HERE.glob("*.mjs"):
        shutil.copy(program, folder)
    (folder / "node_modules").symlink_to(TOOLS / "node_modules")
    ended = subprocess.run(
        [executable, "--test", f"{name}.test.mjs"],
        cwd=folder,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]


@pytest.mark.parametrize("name", ["threads", "agent"])
def test_against_a_server_that_is_cut_at_will(tmp_path: Path, name: str) -> None:
    run_in_node(tmp_path, name)


@pytest.mark.slow
def test_against_a_real_server(tmp_path: Path, server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}"
    run_in_node(tmp_path, "live", STEADWIRE_URL=url)

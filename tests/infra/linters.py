"""Run the checks of tests/tools/checks.txt on a file, and return what they find."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.harness.process import ROOT
from tests.harness.tools import check

__all__ = ["cfn_lint", "checkov", "hadolint", "kubernetes_validate", "zizmor"]


def _run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [check(name), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def _lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of a tool that prints findings alone, a finding a line."""
    found = (done.stdout + done.stderr).strip().splitlines()
    assert bool(found) == (done.returncode != 0), (done.returncode, found)
    return found


def cfn_lint(template: Path) -> list[str]:
    """Return errors, warnings and remarks about a CloudFormation or SAM template."""
    return _lines(
        _run("cfn-lint", template, "--format", "parseable", "--include-checks", "I")
    )


def checkov(path: Path, framework: str) -> list[str]:
    """Return the checks that *path* fails, and those that it skips without a reason."""
    where = "--directory" if path.is_dir() else "--file"
    done = _run(
        "checkov",
        where,
        path,
        "--framework",
        framework,
        "--output",
        "json",
        "--compact",
        "--skip-download",
        "--skip-results-upload",
    )
    report: dict[str, Any] = json.loads(done.stdout)
    assert "results" in report, f"checkov has checked nothing of {path}: {report}"
    assert not report["results"]["parsing_errors"]
    found = [
        f"{one['check_id']} {one['resource']}: {one['check_name']}"
        for one in report["results"]["failed_checks"]
    ]
    for one in report["results"]["skipped_checks"]:
        reason = one["check_result"].get("suppress_comment") or ""
        if len(reason.split()) < 4:
            found.append(f"{one['check_id']} {one['resource']}: skipped without reason")
    return found


def hadolint(dockerfile: Path) -> list[str]:
    """Return errors, warnings and remarks about a Dockerfile."""
    return _lines(
        _run("hadolint", "--no-color", "--failure-threshold", "style", dockerfile)
    )


def kubernetes_validate(manifests: Path) -> list[str]:
    """Return how a file of manifests differs from the schemas of Kubernetes."""
    done = _run("kubernetes-validate", "--strict", manifests)
    lines = (done.stdout + done.stderr).strip().splitlines()
    found = [line for line in lines if not line.startswith("INFO ")]
    assert bool(found) == (done.returncode != 0), (done.returncode, lines)
    return found


def zizmor(workflow: Path) -> list[str]:
    """Return weaknesses of a workflow of GitHub Actions."""
    done = _run(
        "zizmor", "--offline", "--persona", "pedantic", "--format", "json", workflow
    )
    report = json.loads(done.stdout)
    return [f"{one['ident']}: {one['desc']}" for one in report]

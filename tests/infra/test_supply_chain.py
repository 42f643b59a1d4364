"""What is installed, shipped and run elsewhere: locked, listed, licensed and pinned."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.architecture.test_lock import locked
from tests.harness.process import ROOT
from tests.infra.linters import zizmor

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
PERMISSIVE = re.compile(
    r"MIT|Apache|BSD|PSF|Python Software Foundation|ISC|Mozilla Public License 2.0|TCL"
)
COPYLEFT = re.compile(r"GPL|General Public|Affero|SSPL|Commercial|UNKNOWN", re.I)


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_actions_are_pinned_by_their_commit_and_say_their_version() -> None:
    found = 0
    for workflow in WORKFLOWS:
        for line in workflow.read_text().splitlines():
            if "uses:" in line:
                found += 1
                pin = r"\s*- uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
                assert re.fullmatch(pin, line), line
    assert found >= 4


def test_the_workflow_runs_targets_that_there_are() -> None:
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.M))
    run = {
        word
        for workflow in WORKFLOWS
        for step in steps(workflow)
        for word in re.findall(r"make ([\w-]+)", step.get("run", ""))
    }
    assert run <= targets
    # What .ci/run runs, too.
    here = set(
        re.findall(r"^step .*make ([\w-]+)$", (ROOT / ".ci/run").read_text(), re.M)
    )
    assert here and here <= run
    assert {"image", "sbom", "wheels"} <= run


def test_workflows_have_no_more_rights_than_to_read() -> None:
    for workflow in WORKFLOWS:
        about = yaml.safe_load(workflow.read_text())
        assert about["permissions"] == {}
        for job in about["jobs"].values():
            assert job["permissions"] == {"contents": "read"}
            assert job["timeout-minutes"] <= 90


@pytest.mark.slow
def test_linters_find_nothing_in_workflows() -> None:
    assert [zizmor(each) for each in WORKFLOWS] == [[]]


def test_wheels_are_made_for_the_versions_that_are_supported() -> None:
    about = PROJECT["tool"]["cibuildwheel"]
    assert about["build"] == "cp311-* cp312-* cp313-* cp314-*"
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    [matrix] = re.findall(r"python: \[(.*)\]", WORKFLOWS[0].read_text())
    tested = matrix.replace('"', "").split(", ")
    assert [f"cp{each.replace('.', '')}-*" for each in tested] == about["build"].split()
    checked = about["test-command"].split("{project}/")[1]
    assert (ROOT / checked).is_file()


def test_the_list_of_licences_is_of_what_is_locked() -> None:
    text = (ROOT / "docs" / "licences.md").read_text()
    rows = re.findall(r"^\| (\S+) +\| (.+?) +\|$", text, re.M)[1:]
    listed = {plain(name): licence for name, licence in rows}
    installed = {plain(each.name) for each in importlib.metadata.distributions()}
    assert (
        set(listed) == {plain(each) for each in locked("requirements.lock")} & installed
    )
    for name, licence in listed.items():
        assert PERMISSIVE.search(licence), (name, licence)
        assert not COPYLEFT.search(licence), (name, licence)


@pytest.mark.slow
def test_the_bill_of_materials_has_every_package_with_its_hashes(
    tmp_path: Path,
) -> None:
    [recipe] = re.findall(r"cyclonedx-py (.*?)\n\n", MAKEFILE, re.S)
    words = recipe.replace("\\\n", " ").split()
    target = tmp_path / "sbom.json"
    words[words.index("--output-file") + 1] = str(target)
    done = subprocess.run(
        [Path(sys.executable).with_name("cyclonedx-py"), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    bill = json.loads(target.read_text())
    assert bill["metadata"]["component"]["name"] == "steadwire"
    found = {each["name"]: each["version"] for each in bill["components"]}
    assert found == locked("requirements.lock")
    for each in bill["components"]:
        [distribution] = each["externalReferences"]
        assert distribution["hashes"], each["name"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_wheel_is_built_from_the_sources_and_works_in_a_clean_environment(
    tmp_path: Path,
) -> None:
    """By way of the sdist, so that this has everything, too."""
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT],
        env={**os.environ, "SERVICE_BUILD_SPEEDUPS": "yes"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [wheel] = tmp_path.glob("*.whl")
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{version}-{version}-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert len([each for each in names if each.endswith(".so")]) == 6
    assert not [each for each in names if each.endswith(".c") or "tests" in each]
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    [packages] = environment.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    # Its dependencies, without installing them once more.
    other = next(Path(each) for each in sys.path if each.endswith("site-packages"))
    for path in other.iterdir():
        if not path.name.startswith(
            ("__editable__", "steadwire", "distutils-precedence")
        ):
            (packages / path.name).symlink_to(path)
    shown = subprocess.run(
        [python, "-I", ROOT / "tests" / "infra" / "installed.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(str(packages))

"""The lock files name what pyproject.toml and the tests' tools ask for, by hashes."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.architecture.sources import ROOT

LOCKS = {
    "requirements.lock": ("agents", "valkey"),  # EXTRAS of the Makefile
    "requirements-dev.lock": ("dev",),
}


def locked(file: str) -> dict[str, str]:
    """Return the version of each package, and see that each has hashes."""
    found: dict[str, str] = {}
    text = (ROOT / file).read_text()
    for entry in re.split(r"\n(?=\S)", text.strip()):
        first, *hashes = entry.split("\n")
        name, _, rest = first.partition("==")
        assert hashes, f"{name} has no hash"
        for each in hashes:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", each), each
        found[name] = rest.split()[0]
    return found


def test_the_makefile_locks_the_extras_that_are_looked_for_here() -> None:
    text = (ROOT / "Makefile").read_text()
    [extras] = re.findall(r"^EXTRAS := (.+)$", text, re.MULTILINE)
    assert tuple(extras.split()) == LOCKS["requirements.lock"]


@pytest.mark.parametrize("file", LOCKS)
def test_every_dependency_is_locked_at_a_version_that_is_asked_for(file: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = locked(file)
    texts = list(project["dependencies"])
    for extra in LOCKS[file]:
        texts += project["optional-dependencies"][extra]
    for text in texts:
        requirement = Requirement(text)
        version = versions[requirement.name.lower()]
        assert requirement.specifier.contains(version), (text, version)


def test_the_service_has_the_same_versions_in_images_and_in_tests() -> None:
    tested = locked("requirements-dev.lock")
    for name, version in locked("requirements.lock").items():
        assert tested.get(name, version) == version, name


def test_the_tools_of_checks_are_locked() -> None:
    lines = (ROOT / "tests" / "tools" / "checks.txt").read_text().splitlines()
    versions = locked("tests/tools/checks.lock")
    for line in lines:
        if not line.startswith("#"):
            name, _, version = line.partition("==")
            assert versions[name] == version

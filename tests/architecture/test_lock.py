"""requirements.lock names what pyproject.toml asks for, each file by its hash."""

from __future__ import annotations

import re
import tomllib

from packaging.requirements import Requirement

from tests.architecture.sources import ROOT


def locked() -> dict[str, str]:
    """Return the version of each package, and see that each has hashes."""
    found: dict[str, str] = {}
    text = (ROOT / "requirements.lock").read_text()
    for entry in re.split(r"\n(?=\S)", text.strip()):
        first, *hashes = entry.split("\n")
        name, _, rest = first.partition("==")
        assert hashes, f"{name} has no hash"
        for each in hashes:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", each), each
        found[name] = rest.split()[0]
    return found


def test_every_dependency_is_locked_at_a_version_that_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = locked()
    for text in project["dependencies"]:
        requirement = Requirement(text)
        version = versions[requirement.name]
        assert requirement.specifier.contains(version), (text, version)

"""The explorer finds each planted bug."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.explorer.planted import BUGS
from tests.requirements.prove import Copy

PATCHES = Path(__file__).with_name("bugs")
VIOLATIONS = {
    *("STUCK", "DOUBLE", "GAP", "EPOCH", "TWICE"),
    *("LEFT", "LATE", "DEAF", "ORDER", "LIMIT", "COUNT", "RECORD"),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("planted"))
    copy.check()
    return copy


def test_every_patch_has_its_bounds():
    assert {path.stem for path in PATCHES.glob("*.patch")} == BUGS.keys()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found(copy, name):
    with copy.patched(PATCHES / f"{name}.patch"):
        status, output = copy.run("-m", "tests.gateway.explorer.planted", name)
    assert status == 0, output
    assert output.split(":")[0] in VIOLATIONS, output

"""The requirements, their page, their markers, and the patches that prove them."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from tests.requirements.page import page
from tests.requirements.prove import ROOT, patches, wanted
from tests.requirements.rows import (
    ERROR_SCENARIOS,
    error_scenarios,
    faults,
    marked,
    rows,
)


def item(*ids: str, name: str = "test", slow: bool = False) -> Any:
    """Return what pytest has of a test with these rows."""
    marks = [pytest.mark.requirement(*ids).mark] if ids else []
    return SimpleNamespace(
        nodeid=name,
        iter_markers=lambda _: iter(marks),
        get_closest_marker=lambda _: slow or None,
    )


def test_rows_are_numbered_without_a_gap() -> None:
    assert list(rows()) == [
        f"{letter}{number}"
        for letter, count in (("R", 52), ("B", 133), ("L", 28))
        for number in range(1, count + 1)
    ]
    for row in rows().values():
        assert row.text.endswith((".", ".)"))
        assert not (row.later and row.not_applicable)


def test_the_page_is_made_from_the_rows() -> None:
    assert (ROOT / "docs" / "requirements.md").read_text() == page(), (
        "run: python -m tests.requirements.page > docs/requirements.md"
    )


def test_a_test_shows_known_rows_and_at_most_three() -> None:
    found = marked(
        [
            item("R1", "B2", "L3", name="a.py::one[x]", slow=True),
            item("R1", "B2", "L3", name="a.py::one[y]"),
            item("R1", name="a.py::two", slow=True),
            item(name="a.py::three"),
        ]
    )
    assert found["R1"] == {"a.py::one": False, "a.py::two": True}
    assert found["L3"] == {"a.py::one": False}
    with pytest.raises(pytest.UsageError, match="no such requirement"):
        marked([item("R53")])
    with pytest.raises(pytest.UsageError, match="at most 3"):
        marked([item("R1", "R2", "R3", "R4")])


@pytest.mark.requirement("R51", "B30")
def test_a_live_row_without_a_test_and_too_few_error_scenarios_are_faults() -> None:
    tests = {row: {f"{row}.py::test": False} for row in rows()}
    assert faults(tests) == []
    tests["R13"] = {}
    tests["B74"] = tests["L5"] = {}  # not applicable, later
    assert faults(tests) == [f"R13 has no test: {rows()['R13'].text}"]
    many = {f"{number}.py::test": False for number in range(ERROR_SCENARIOS)}
    tests = {row: {"one.py::test": False} for row in rows()} | {"R13": many}
    assert faults(tests) == []
    assert len(error_scenarios(tests)) == ERROR_SCENARIOS + 1
    del many["0.py::test"], many["1.py::test"]
    assert faults(tests) == ["94 error scenarios, at least 95 are wanted"]


def test_every_live_row_has_a_patch_that_applies() -> None:
    assert set(patches()) == set(wanted())
    for row, patch in patches().items():
        done = subprocess.run(
            ["git", "apply", "--check", str(patch)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{row}: {done.stderr}"

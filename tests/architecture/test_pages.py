"""The files that docs/architecture.md names are there."""

from __future__ import annotations

import re

from tests.architecture.sources import ROOT


def test_the_files_that_answer_a_question_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("| question |") : text.index("## A publish")]
    named = re.findall(r"`([\w/]+/[\w/]+\.py|runtime\.py)`", table)
    assert len(named) >= 20
    for name in named:
        assert (ROOT / "service" / name).is_file(), name


def test_the_folders_of_the_table_are_those_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("| folder |") : text.index("| question |")]
    named = set(re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)) - {"_speedups"}
    folders = {path.parent.name for path in (ROOT / "service").glob("*/__init__.py")}
    assert named == folders


def test_the_files_that_pages_name_are_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = [
        (page.name, name)
        for page in pages
        for name in re.findall(
            r"`((?:tests|service|benchmarks|infra|clients|_speedups)/[\w./-]+)`",
            page.read_text(),
        )
    ]
    assert len(named) >= 100
    assert [each for each in named if not (ROOT / each[1]).exists()] == []

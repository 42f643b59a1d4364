"""Rows of the requirements, as requirements.toml has them, and the tests of each."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import msgspec
import pytest

__all__ = [
    "ERROR_SCENARIOS",
    "FOLDER",
    "MARKED",
    "Row",
    "error_scenarios",
    "faults",
    "marked",
    "rows",
]

FOLDER = Path(__file__).resolve().parent

ERROR_SCENARIOS = 95
"""How many tests of things that fail there are at least (R51)."""

_A_TEST = 3
"""Rows that one test may show: a test of everything shows nothing."""

MARKED = pytest.StashKey[dict[str, dict[str, bool]]]()
"""Of a pytest run: each row with its tests (path::function), and which are slow."""


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One requirement. *later* and *not_applicable* are reasons, "" for a live row."""

    text: str
    error: bool = False
    later: str = ""
    not_applicable: str = ""

    @property
    def live(self) -> bool:
        return not self.later and not self.not_applicable

    @property
    def state(self) -> str:
        if self.later:
            return f"later: {self.later}"
        if self.not_applicable:
            return f"not applicable: {self.not_applicable}"
        return "live"


@cache
def rows() -> Mapping[str, Row]:
    """Return all rows by their ids, in the order of the file."""
    text = (FOLDER / "requirements.toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), dict[str, Row])


def marked(items: Iterable[pytest.Item]) -> dict[str, dict[str, bool]]:
    """Return for each row the tests that carry its marker, and whether each is slow.

    Raises:
        pytest.UsageError: A marker names an unknown row, or a test more than three.
    """
    found: dict[str, dict[str, bool]] = {row: {} for row in rows()}
    for item in items:
        ids = [row for mark in item.iter_markers("requirement") for row in mark.args]
        if not ids:
            continue
        if unknown := [row for row in ids if row not in found]:
            raise pytest.UsageError(f"{item.nodeid}: no such requirement: {unknown}")
        if len(ids) > _A_TEST:
            raise pytest.UsageError(
                f"{item.nodeid}: {len(ids)} requirements, at most {_A_TEST} a test"
            )
        test = item.nodeid.partition("[")[0]
        slow = item.get_closest_marker("slow") is not None
        for row in ids:
            # One quick case makes the test quick.
            found[row][test] = slow and found[row].get(test, True)
    return found


def faults(tests: Mapping[str, Mapping[str, bool]]) -> list[str]:
    """Return what is missing: live rows without a test, and error scenarios."""
    found = [
        f"{row} has no test: {rows()[row].text}"
        for row in rows()
        if rows()[row].live and not tests[row]
    ]
    if (count := len(error_scenarios(tests))) < ERROR_SCENARIOS:
        found.append(f"{count} error scenarios, at least {ERROR_SCENARIOS} are wanted")
    return found


def error_scenarios(tests: Mapping[str, Mapping[str, bool]]) -> set[str]:
    """Return the tests that show a row in which something fails, each once."""
    return {test for row in rows() if rows()[row].error for test in tests[row]}

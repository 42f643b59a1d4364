"""Sections of the settings: docs/limits.md has the limits, and secrets stay hidden."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.settings import LimitSettings, Secret, Settings

DOCS = Path(__file__).resolve().parents[2] / "docs" / "limits.md"
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in DOCS.read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| limit ")
]
SET = [(row[1].strip("`"), row) for row in ROWS if row[1].startswith("`")]
UNITS = {"KiB": 1024, "MiB": 1024**2, "s": 1}


def number(text: str) -> float:
    """Return the number that a default begins with, in bytes or seconds."""
    found = re.match(r"([0-9.,]+)(?: (KiB|MiB|s))?", text)
    assert found, text
    return float(found[1].rstrip(",").replace(",", "")) * UNITS.get(found[2], 1)


def value(name: str, *, environment: str) -> Any:
    settings = Settings(environment=environment)
    section, field = name.split(".")
    if section == "limits":
        return getattr(settings.effective_limits, field)
    if name == "connections.limit":
        return settings.connection_limit
    if name == "connections.user_limit":
        return settings.user_limit % 2**31  # which stands for no limit
    return getattr(getattr(settings, section), field)


@pytest.mark.requirement("B43")
@pytest.mark.parametrize(("name", "row"), SET, ids=[name for name, _ in SET])
def test_defaults(name: str, row: list[str]) -> None:
    strict = value(name, environment="production")
    loose = value(name, environment="development")
    if "development" in row[2]:
        assert number(row[2]) == loose
        assert number(row[2].split(", ", 1)[1]) == strict
    else:
        assert number(row[2]) == strict
        # A star says that it does not apply in development.
        assert loose == (0 if row[0].endswith("*") else strict)
    burst = re.search(r"and ([0-9,]+) at once", row[2])
    if burst:
        assert number(burst[1]) == strict * LimitSettings().burst


def test_all_limits_are_there() -> None:
    names = [name for name, _ in SET]
    assert len(names) == len(set(names))
    fields = msgspec.structs.fields(LimitSettings)
    assert {f"limits.{field.name}" for field in fields} <= set(names)


def test_a_secret_shows_itself_nowhere() -> None:
    secret = Secret("s3cret")
    shown = [str(secret), repr(secret), f"{secret}", f"{secret!r}", f"{secret:>10}"]
    shown += [f"{[secret]}", "%s %r" % (secret, secret), "{}".format(secret)]  # noqa: UP031, UP032
    assert not any("s3cret" in text for text in shown)
    assert secret == "s3cret" and secret.encode() == b"s3cret"

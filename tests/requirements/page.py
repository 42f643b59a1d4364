"""docs/requirements.md: `python -m tests.requirements.page > docs/requirements.md`."""

from __future__ import annotations

import sys

from tests.requirements.rows import rows

__all__ = ["page"]

_HEAD = """# Requirements

Made by `python -m tests.requirements.page` from `tests/requirements/requirements.toml`;
do not edit.

What the service must do, in rows that never change their number. Every live row has
tests that carry it as a marker, `@pytest.mark.requirement("R13")`;
[testing.md](testing.md) says how that is counted and proven.

* *live*: done, and shown by tests.
* *later*: not built yet, with what it waits for.
* *not applicable*: with the reason.
"""

_PARTS = {
    "R": "R: robustness",
    "B": "B: behaviours, each with at least one test",
    "L": "L: needs that were learned from incidents",
}


def page() -> str:
    """Return the page."""
    parts = [_HEAD]
    for letter, title in _PARTS.items():
        parts.append(f"\n## {title}\n\n| | requirement | state |\n|---|---|---|\n")
        parts.extend(
            f"| {id_} | {row.text} | {row.state} |\n"
            for id_, row in rows().items()
            if id_[0] == letter
        )
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())

"""Coverage of the requirements: `python -m tests.requirements.coverage`.

Collects all tests without running any, prints each row with its tests, and fails if a
live row has none.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Mapping

import pytest

from tests.requirements.rows import (
    ERROR_SCENARIOS,
    MARKED,
    error_scenarios,
    faults,
    rows,
)

__all__ = ["collected"]


class _Collection:
    """A plug-in that keeps what was collected."""

    tests: Mapping[str, Mapping[str, bool]] | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.tests = session.config.stash[MARKED]


def collected() -> Mapping[str, Mapping[str, bool]]:
    """Return for each row its tests, and whether each is slow.

    Raises:
        SystemExit: The tests cannot be collected.
    """
    collection = _Collection()
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = pytest.main(
            ["--collect-only", "-q", "-p", "no:cacheprovider"], plugins=[collection]
        )
    if status or collection.tests is None:
        sys.exit(output.getvalue() or f"pytest ended with status {status}")
    return collection.tests


def main() -> None:
    tests = collected()
    for id_, row in rows().items():
        print(f"{id_:5} {row.state if not row.live else row.text}")
        for test, slow in sorted(tests[id_].items()):
            print(f"      {test}{'  (slow)' if slow else ''}")
    print()
    for letter in "RBL":
        states = Counter(
            row.state.partition(":")[0]
            for id_, row in rows().items()
            if id_[0] == letter
        )
        print(f"{letter}: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    every = {test for found in tests.values() for test in found}
    errors = error_scenarios(tests)
    print(
        f"{len(every)} tests, {len(errors)} of them error scenarios "
        f"(at least {ERROR_SCENARIOS})"
    )
    if missing := faults(tests):
        sys.exit("\n" + "\n".join(missing))


if __name__ == "__main__":
    main()

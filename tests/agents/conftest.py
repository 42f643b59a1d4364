from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.agui import Judge, started_judge


@pytest.fixture(scope="session")
def judge() -> Iterator[Judge]:
    with started_judge() as judge:
        yield judge

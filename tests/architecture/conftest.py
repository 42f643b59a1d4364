"""The trees of all sources take hundreds of megabytes: no longer than they are read."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.architecture.sources import forget


@pytest.fixture(scope="module", autouse=True)
def no_tree_is_kept() -> Iterator[None]:
    """Forget the parsed sources when a module ends."""
    yield
    forget()

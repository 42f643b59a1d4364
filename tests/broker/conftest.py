from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness.valkey import Valkey


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    """Return a server that the tests of a module share."""
    server = Valkey().start()
    yield server
    server.kill()

"""Servers for the tests of the server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.server.running import Process, process_with


@pytest.fixture
def launch() -> Iterator[Callable[..., Process]]:
    """Start processes; arguments are the server's settings, and ``fault``."""
    started: list[Process] = []

    def start(*, fault: str = "", **settings: Any) -> Process:
        process = Process(settings, fault)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


server = process_with({})

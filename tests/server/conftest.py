"""Servers for the tests of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.server.running import Process


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


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    """A server with the default settings, ready; the tests of a module share it."""
    process = Process({}, "")
    asyncio.run(process.ready())
    yield process
    process.kill()

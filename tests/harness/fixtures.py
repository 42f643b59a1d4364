"""Fixtures that a test module makes for itself: servers, and the stores they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.harness.backends import ALL, Backend
from tests.harness.gateway import server_of
from tests.harness.server import Server

__all__ = ["backends", "framings", "server_with"]

Settings = Mapping[str, str] | Callable[[pytest.FixtureRequest], Mapping[str, str]]


def server_with(settings: Settings | None = None, *, app: str = "") -> Any:
    """Return a fixture of a server that the tests of a module share.

    They are not to disturb each other: channels and users of their own, and no
    restarts. Its store is what the fixture ``backend`` says.

    Args:
        settings: STEADWIRE_* variables, or a function that returns them, which may ask
            its argument for fixtures.
        app: As of `Server`.
    """

    @pytest.fixture(scope="module")
    def server(
        request: pytest.FixtureRequest,
        tmp_path_factory: pytest.TempPathFactory,
        backend: Backend,
        framing: dict[str, str],
    ) -> Iterator[Server]:
        own = settings(request) if callable(settings) else settings or {}
        directory = tmp_path_factory.mktemp("server")
        variables = {**backend(), **framing, **own}
        server = server_of(directory, variables, app=app)
        try:
            yield server.start_blocking()
        finally:
            server.close()

    return server


def backends(*names: str, slow: tuple[str, ...] = ()) -> Any:
    """Return a fixture ``backend``: the tests of a module run once for each store.

    Args:
        names: Of `ALL`.
        slow: More of them, in ``make test-slow`` only.
    """
    marked = [pytest.param(name, marks=pytest.mark.slow) for name in slow]

    @pytest.fixture(scope="module", params=[*names, *marked])
    def backend(request: pytest.FixtureRequest) -> Backend:
        return ALL[request.param]

    return backend


def framings(*, slow: bool = False) -> Any:
    """Return a fixture ``framing``: a module runs with our frames, and with wsproto.

    Args:
        slow: With wsproto in ``make test-slow`` only.
    """
    wsproto = {"STEADWIRE_SERVER_WSPROTO": "true"}
    marks = [pytest.mark.slow] if slow else []

    @pytest.fixture(
        scope="module",
        params=[
            pytest.param({}, id="frames"),
            pytest.param(wsproto, id="wsproto", marks=marks),
        ],
    )
    def framing(request: pytest.FixtureRequest) -> dict[str, str]:
        found: dict[str, str] = request.param
        return found

    return framing

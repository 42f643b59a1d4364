"""`install`: only a process that serves has our classes in place of Hypercorn's."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest

from service.app import create_app
from service.core.errors import StartupError
from service.core.refusal_log import RefusalLog
from service.server import HYPERCORN_VERSIONS, install
from service.settings import ApiSettings, Settings, StoreSettings
from tests.harness.metrics import scrape
from tests.harness.server import Server
from tests.harness.sockets import TcpClient
from tests.server.running import until

# The names under which Hypercorn finds the classes of connections and WebSockets.
NAMES = (
    ("hypercorn.asyncio.run", "TCPServer"),
    ("hypercorn.protocol.h11", "WSStream"),
    ("hypercorn.protocol.h2", "WSStream"),
)


def classes() -> list[object]:
    return [getattr(import_module(module), name) for module, name in NAMES]


def test_composing_an_application_leaves_hypercorn_alone() -> None:
    before = classes()
    create_app(Settings(store=StoreSettings(path=":memory:"), api=ApiSettings(key="k")))
    assert classes() == before


async def test_hypercorn_s_own_command_has_our_limits(
    make_server: Callable[..., Server],
) -> None:
    settings = {"STEADWIRE_SERVER_MESSAGE_SIZE": "2000"}
    server = await make_server(settings, app="service.app:app").start()
    client = await server.raw()
    await client.send_text("x" * 2001)
    closed = await client.closed()
    assert (closed.code, closed.reason) == (1009, "message too big")


@pytest.mark.parametrize("app", ["", "service.app:app"], ids=["steadwire", "hypercorn"])
async def test_a_connection_that_is_cut_off_is_counted(
    make_server: Callable[..., Server], app: str
) -> None:
    settings = {"STEADWIRE_SERVER_SILENT": "1"}
    server = await make_server(settings, app=app).start()
    async with server.api() as api:
        before = await scrape(api)
        silent = [await TcpClient.connect(server.port) for _ in range(2)]
        await until(silent[0].ended, 5.0, "cut off")
        after = await scrape(api)
        assert silent[1].ended()
    # The first of the API's connections, which was idle, and the two.
    assert after.since(before)["connections_refused_total{silent}"] == 3
    for client in silent:
        client.close()


def test_supported_versions_of_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"0.18.0"} == HYPERCORN_VERSIONS
    monkeypatch.setattr(
        import_module("service.server.install"), "version", lambda name: "0.18.1"
    )
    with pytest.raises(StartupError, match=r"hypercorn 0\.18\.1 is not supported"):
        install(Settings(), RefusalLog())

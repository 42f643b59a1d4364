"""Paths in other spellings, paths without a WebSocket, and HEAD."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.api import Api
from tests.harness.fixtures import backends, server_with
from tests.harness.raw import HandshakeRefused, RawClient
from tests.harness.server import Server

backend = backends("sqlite")
server = server_with()


@pytest.mark.parametrize(
    "path",
    [
        "//api/info",
        "///api/info",
        "/%61pi/info",
        "/api/inf%6f",
        "/api%2finfo",
        "/%2fapi/info",
        "/api//info",
        "/api/info/",
        "/./api/info",
        "/x/../api/info",
        "/API/info",
        "/api/info%00",
        "/api/info;x",
    ],
)
async def test_another_spelling_of_a_path(server: Server, api: Api, path: str) -> None:
    key = {"X-API-Key": server.key, "Content-Type": "application/json"}
    assert (await api.request("POST", path, b"{}", key)).status == 404
    assert (await api.request("POST", "/api/info?x=%2f//", b"{}", key)).status == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/nothing", "/health/live", "/api/info", "/%ff", "//connection/websocket",
     "/connection/websocke%74", "/connection/websocket/"],
)  # fmt: skip
async def test_a_websocket_at_a_wrong_path(server: Server, path: str) -> None:
    """Status 404, and no line in the log that a stranger could fill it with."""
    before = len(server.output())
    with pytest.raises(HandshakeRefused) as refused:
        await RawClient.open(server.port, path=path)
    assert refused.value.status == 404
    assert '"level": "error"' not in server.output()[before:]


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/metrics", "/stats", "/api/openapi.json"]
)
async def test_head(server: Server, api: Api, path: str) -> None:
    """As GET, without the body."""
    key = {"X-API-Key": server.key}
    found = await api.request("GET", path, headers=key)
    only = await api.request("HEAD", path, headers=key)
    assert (only.status, only.body) == (found.status, b"") == (200, b"")
    assert only.headers["content-type"] == found.headers["content-type"]
    if path.startswith("/health") or "openapi" in path:  # the others change
        assert only.headers["content-length"] == str(len(found.body))
    # The connection is in step: nothing is left of a body.
    assert (await api.request("GET", "/health/live")).json == {"status": "live"}


@pytest.mark.parametrize("path", ["/nothing?secret=1", "//connection/websocket"])
async def test_an_unknown_path_says_in_the_log_where_things_are(
    make_server: Callable[..., Server], path: str
) -> None:
    server = await make_server().start()
    async with server.api() as api:
        for _ in range(50):
            assert (await api.request("GET", path)).status == 404
    await server.logged("refused")
    await server.terminate()
    first, last = [line for line in server.log() if line["event"] == "refused"]
    assert (first["level"], first["cause"]) == ("info", "path")
    assert first["path"] == path.partition("?")[0]
    assert "/connection/websocket" in first["remedy"] or "spelling" in first["remedy"]
    assert last["not_logged"] == 49
    assert "secret" not in server.output()


async def test_head_of_what_has_no_get(server: Server, api: Api) -> None:
    assert (await api.request("HEAD", "/api/info")).status == 405
    assert (await api.request("HEAD", "/metrics")).status == 401
    assert (await api.request("HEAD", "/nothing")).status == 404
